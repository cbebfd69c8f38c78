"""How a sequence is laid out and split over ranks, and how rows get from one layout to another."""
