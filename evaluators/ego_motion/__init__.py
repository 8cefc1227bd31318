"""Did the camera go where it was told? Ego motion estimated from video alone, held against the commanded path.

Two opinions: a small network trained to read the motion between two moments from six cameras (``network.py``), and visual odometry on
the ground plane, which has learnt nothing (``odometry.py``).
"""
