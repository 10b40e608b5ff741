"""Everything behind the scripts, a room a subject; imports go down only (tests/test_house.py)."""
