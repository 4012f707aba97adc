"""What the house was built with and is tested on: the recipe of the pocket."""
