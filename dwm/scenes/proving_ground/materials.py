"""Surface materials of rendered primitives and what light does to them."""

PLAIN, FACADE, GLASS, FOLIAGE, HEADLIGHT, TAILLIGHT, SHADOW, LAMP = range(8)
