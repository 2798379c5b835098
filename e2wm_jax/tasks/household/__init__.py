"""The household's sets: plans, activities, counting, tracking, inference, housework."""
