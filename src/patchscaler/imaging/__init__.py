"""Reading and writing photographs."""
