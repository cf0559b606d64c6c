"""Records responses, replays them and streams them."""
