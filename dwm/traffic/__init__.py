"""Traffic on a lane graph: car following, right of way, pedestrians."""
