"""What is minimised: objectives, each a sum of means over what the data say counts."""
