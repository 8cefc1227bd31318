"""How the kinds of surface in one true frame look, each remembered in the coordinates that stay with it.

Ground by its kind and its place on the road, sky by elevation, fronts by place along the street's edge and height, things
by place on their box. Each look is learnt from the frame's pixels and answers for pixels of any other.

Shapes: P pixels; colours [P, 3] lie in [-1, 1], and the share of them that is known [P] in [0, 1].
"""
