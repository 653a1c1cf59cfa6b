"""The processes of one launch, and a call of `generate` split over them."""
