"""The wire between Holdcourse's services, and the rules that both ends must agree on."""
