"""Checkpoint formats of EAGLE-3 and EAGLE-3.1 drafters: readers, writers, and their commands.

Read: SafeAILab, SpecForge and SGLang, speculators, vLLM's own names, NeMo Automodel. Whatever a
reader could get wrong in silence is refused in one sentence that says what to add.
"""
