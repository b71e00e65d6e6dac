"""Word lists that the synthetic tasks draw from."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """Anna Ben Carla David Emma Felix Grace Henry Ida Jack Kate Liam Mia Noah Olivia Paul Rosa Sam Tina Victor
    Wendy Adam Bella Clara Daniel Ella Frank Hannah Isaac Julia Kevin Laura Mark Nora Oscar Peter Ruth Simon"""
)
ITEMS = _words(
    """apples pens books oranges cookies marbles stickers pencils cards eggs cakes balls tickets shirts cups flowers
    candles muffins bottles toys stamps shells lemons buttons plates coins hats bags chairs lamps"""
)
CITIES = _words(
    """Paris London Berlin Rome Madrid Vienna Oslo Lisbon Dublin Prague Athens Warsaw Cairo Lima Tokyo Delhi Boston
    Chicago Sydney Toronto"""
)
WORDS = _words(
    """apple arm bag ball bear bed bell bird boat bone book box bread bridge bus cake camp card cat chair city clock
    cloud coat coin corn cow cup desk dog door dress drum duck egg eye face farm fire fish floor foot fork fox frog
    game gate gift girl glass goat gold green hair hand hat hill horse house ice jacket key king kite knife lake lamp
    leaf lemon lion map milk moon mouse nail nest night nose ocean oil orange oven owl paint paper park pen piano pig
    plane plant plate queen rain ring river road roof room rope rose salt sand school sea ship shoe silver sky snow
    soap sock spoon star stone storm street sugar summer sun table tail tea tiger tower train tree truck wall watch
    water wave wheel window winter wolf yard zebra"""
)
