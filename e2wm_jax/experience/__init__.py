"""How agents come by experience: searches, exploration, collections, replay."""
