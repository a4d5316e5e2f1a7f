"""Crystal-structure prototypes: what sits where, for an ideal cell of each type.

A prototype fixes the space group, the shape of the conventional cell and the fractional positions; only its length `a`
is free, and the ionic radii of the model set it (`model_crystals.py`). Free internal parameters (u, x, z) and axial
ratios are those of the mineral or compound named in `example`, rounded as in Wyckoff, Crystal Structures (1963) and
Wells, Structural Inorganic Chemistry (1984). tests/golden/make_ionic_data.py turns each prototype into
numbers (Ewald sums, bond lengths) and checks with spglib that the positions do give the space group stated here.

    symbol   code                          meaning, unit
    a        (free)                        length of the first axis, Å
    b/a c/a  b_over_a, c_over_a            dimensionless
    n_s      CationSite.count              ions of the site per formula unit
    CN_s     CationSite.coordination       nearest anions
    n_X      Prototype.anion_count         anions per formula unit
    Z        Prototype.formula_units       formula units per conventional cell

`anions` names the chemistry a type is known in, so that the set resembles a database and not all that can be written
down. `radius_ratios` replaces Pauling's window for the coordination number where the type is known to break it: the
anti-types, whose anions are the well-packed ions, and salts whose cation is the larger ion.
"""

from dataclasses import dataclass

Position = tuple[float, float, float]


@dataclass(frozen=True)
class CationSite:
    """One cation of the formula; its `positions` may span several Wyckoff sites of like surroundings."""

    count: int
    """Ions per formula unit."""
    coordination: int
    """Anions in the first shell (mean over the positions, rounded)."""
    positions: tuple[Position, ...]
    """One representative fractional position for each Wyckoff site."""


@dataclass(frozen=True)
class Prototype:
    """An ideal structure type with one kind of anion; see the module docstring for symbols and units."""

    name: str
    example: str
    space_group: int
    formula_units: int
    cations: tuple[CationSite, ...]
    anion_count: int
    anion_coordination: int
    anion_positions: tuple[Position, ...]
    anions: tuple[str, ...]
    b_over_a: float = 1.0
    c_over_a: float = 1.0
    gamma: float = 90.0
    """Degrees, 90 or 120; alpha and beta are 90 in every prototype (hexagonal axes for trigonal cells)."""
    radius_ratios: tuple[float, float] | None = None
    """(lowest, highest) cation-to-anion ratio of six-coordinate radii; None: by the coordination number."""

    @property
    def atoms_per_formula(self) -> int:
        """Atoms in one formula unit."""
        return sum(site.count for site in self.cations) + self.anion_count


THIRD = 1 / 3
TWO_THIRDS = 2 / 3
ORIGIN = (0.0, 0.0, 0.0)
CENTRE = (0.5, 0.5, 0.5)
QUARTER = (0.25, 0.25, 0.25)

HALIDES = ("F", "Cl", "Br", "I")
CHALCOGENIDES = ("O", "S", "Se", "Te")
PNICTIDES = ("N", "P", "As", "Sb")


def _hexagonal(**fields) -> Prototype:
    return Prototype(gamma=120.0, **fields)


def _site(count: int, coordination: int, *positions: Position) -> CationSite:
    return CationSite(count, coordination, positions)


# Tables read better than one field a line.
# fmt: off
MX = (
    Prototype(
        name="rocksalt", example="NaCl", space_group=225, formula_units=4,
        cations=(_site(1, 6, ORIGIN),),
        anion_count=1, anion_coordination=6, anion_positions=(CENTRE,),
        anions=HALIDES + CHALCOGENIDES + PNICTIDES, radius_ratios=(0.33, 1.30),
    ),
    Prototype(
        name="cscl", example="CsCl", space_group=221, formula_units=1,
        cations=(_site(1, 8, ORIGIN),),
        anion_count=1, anion_coordination=8, anion_positions=(CENTRE,),
        anions=HALIDES + CHALCOGENIDES, radius_ratios=(0.55, 1.50),
    ),
    Prototype(
        name="zincblende", example="ZnS", space_group=216, formula_units=4,
        cations=(_site(1, 4, ORIGIN),),
        anion_count=1, anion_coordination=4, anion_positions=(QUARTER,),
        anions=HALIDES + CHALCOGENIDES + PNICTIDES,
    ),
    _hexagonal(
        name="wurtzite", example="ZnO", space_group=186, formula_units=2, c_over_a=1.633,
        cations=(_site(1, 4, (THIRD, TWO_THIRDS, 0.0)),),
        anion_count=1, anion_coordination=4, anion_positions=((THIRD, TWO_THIRDS, 0.375),),
        anions=HALIDES + CHALCOGENIDES + PNICTIDES,
    ),
    _hexagonal(
        name="nickeline", example="NiAs", space_group=194, formula_units=2, c_over_a=1.50,
        cations=(_site(1, 6, ORIGIN),),
        anion_count=1, anion_coordination=6, anion_positions=((THIRD, TWO_THIRDS, 0.25),),
        anions=CHALCOGENIDES + PNICTIDES,
    ),
)

MX2 = (
    Prototype(
        name="fluorite", example="CaF2", space_group=225, formula_units=4,
        cations=(_site(1, 8, ORIGIN),),
        anion_count=2, anion_coordination=4, anion_positions=(QUARTER,),
        anions=HALIDES + CHALCOGENIDES,
    ),
    Prototype(
        name="rutile", example="TiO2", space_group=136, formula_units=2, c_over_a=0.65,
        cations=(_site(1, 6, ORIGIN),), anion_count=2, anion_coordination=3, anion_positions=((0.305, 0.305, 0.0),),
        anions=("F", "Cl", "Br", "O"),
    ),
    _hexagonal(
        name="cdi2", example="CdI2", space_group=164, formula_units=1, c_over_a=1.60,
        cations=(_site(1, 6, ORIGIN),), anion_count=2, anion_coordination=3,
        anion_positions=((THIRD, TWO_THIRDS, 0.25),),
        anions=HALIDES + CHALCOGENIDES,
    ),
    _hexagonal(
        name="cdcl2", example="CdCl2", space_group=166, formula_units=3, c_over_a=4.55,
        cations=(_site(1, 6, ORIGIN),), anion_count=2, anion_coordination=3, anion_positions=((0.0, 0.0, 0.2519),),
        anions=HALIDES + CHALCOGENIDES,
    ),
    Prototype(
        name="cristobalite", example="SiO2", space_group=227, formula_units=8,
        cations=(_site(1, 4, ORIGIN),),
        anion_count=2, anion_coordination=2, anion_positions=((0.125, 0.125, 0.125),),
        anions=HALIDES + CHALCOGENIDES,
    ),
)

ANTI_TYPES = (
    Prototype(
        name="antifluorite", example="Li2O", space_group=225, formula_units=4,
        cations=(_site(2, 4, QUARTER),),
        anion_count=1, anion_coordination=8, anion_positions=(ORIGIN,),
        anions=CHALCOGENIDES, radius_ratios=(0.30, 1.30),
    ),
    Prototype(
        name="li3bi", example="Li3Bi", space_group=225, formula_units=4,
        cations=(_site(3, 5, QUARTER, CENTRE),),
        anion_count=1, anion_coordination=12, anion_positions=(ORIGIN,),
        anions=PNICTIDES, radius_ratios=(0.30, 1.00),
    ),
    Prototype(
        name="antibixbyite", example="Mg3N2", space_group=206, formula_units=16,
        cations=(_site(3, 4, (0.389, 0.152, 0.382)),), anion_count=2, anion_coordination=6,
        anion_positions=(QUARTER, (0.969, 0.0, 0.25)),
        anions=PNICTIDES, radius_ratios=(0.30, 0.85),
    ),
)

M2X3 = (
    _hexagonal(
        name="corundum", example="Al2O3", space_group=167, formula_units=6, c_over_a=2.73,
        cations=(_site(2, 6, (0.0, 0.0, 0.352)),), anion_count=3, anion_coordination=4,
        anion_positions=((0.306, 0.0, 0.25),),
        anions=CHALCOGENIDES,
    ),
    Prototype(
        name="bixbyite", example="Y2O3", space_group=206, formula_units=16,
        cations=(_site(2, 6, QUARTER, (0.968, 0.0, 0.25)),), anion_count=3, anion_coordination=4,
        anion_positions=((0.391, 0.152, 0.380),),
        anions=CHALCOGENIDES,
    ),
    _hexagonal(
        name="a-la2o3", example="La2O3", space_group=164, formula_units=1, c_over_a=1.557,
        cations=(_site(2, 7, (THIRD, TWO_THIRDS, 0.245)),), anion_count=3, anion_coordination=5,
        anion_positions=((THIRD, TWO_THIRDS, 0.645), ORIGIN),
        anions=CHALCOGENIDES,
    ),
)

MX3 = (
    Prototype(
        name="reo3", example="AlF3", space_group=221, formula_units=1,
        cations=(_site(1, 6, ORIGIN),),
        anion_count=3, anion_coordination=2, anion_positions=((0.5, 0.0, 0.0),),
        anions=HALIDES,
    ),
    _hexagonal(
        name="tysonite", example="LaF3", space_group=165, formula_units=6, c_over_a=1.023,
        cations=(_site(1, 9, (0.660, 0.0, 0.25)),), anion_count=3, anion_coordination=3,
        anion_positions=((0.366, 0.054, 0.081), (THIRD, TWO_THIRDS, 0.187), (0.0, 0.0, 0.25)),
        anions=HALIDES,
    ),
    _hexagonal(
        name="bii3", example="BiI3", space_group=148, formula_units=6, c_over_a=2.76,
        cations=(_site(1, 6, (0.0, 0.0, THIRD)),), anion_count=3, anion_coordination=2,
        anion_positions=((0.0, 0.333, 0.2470),),
        anions=HALIDES,
    ),
    _hexagonal(
        name="ucl3", example="UCl3", space_group=176, formula_units=2, c_over_a=0.58,
        cations=(_site(1, 9, (THIRD, TWO_THIRDS, 0.25)),), anion_count=3, anion_coordination=3,
        anion_positions=((0.387, 0.302, 0.25),),
        anions=HALIDES,
    ),
)

ABX2 = (
    _hexagonal(
        name="alpha-nafeo2", example="NaFeO2", space_group=166, formula_units=3, c_over_a=5.20,
        cations=(_site(1, 6, (0.0, 0.0, 0.5)), _site(1, 6, ORIGIN)), anion_count=2, anion_coordination=6,
        anion_positions=((0.0, 0.0, 0.240),),
        anions=CHALCOGENIDES + PNICTIDES,
    ),
    _hexagonal(
        name="delafossite", example="CuFeO2", space_group=166, formula_units=3, c_over_a=5.65,
        cations=(_site(1, 2, ORIGIN), _site(1, 6, (0.0, 0.0, 0.5))), anion_count=2, anion_coordination=4,
        anion_positions=((0.0, 0.0, 0.1070),),
        anions=CHALCOGENIDES,
    ),
    Prototype(
        name="chalcopyrite", example="CuFeS2", space_group=122, formula_units=4, c_over_a=2.0,
        cations=(_site(1, 4, ORIGIN), _site(1, 4, (0.0, 0.0, 0.5))), anion_count=2, anion_coordination=4,
        anion_positions=((0.25, 0.25, 0.125),),
        anions=CHALCOGENIDES + PNICTIDES,
    ),
)

ABX_AB2X2 = (
    Prototype(
        name="nowotny-juza", example="LiMgN", space_group=216, formula_units=4,
        cations=(_site(1, 4, CENTRE), _site(1, 4, ORIGIN)),
        anion_count=1, anion_coordination=8, anion_positions=(QUARTER,),
        anions=PNICTIDES,
    ),
    _hexagonal(
        name="caal2si2", example="CaMg2Sb2", space_group=164, formula_units=1, c_over_a=1.62,
        cations=(_site(1, 6, ORIGIN), _site(2, 4, (THIRD, TWO_THIRDS, 0.63))), anion_count=2, anion_coordination=7,
        anion_positions=((THIRD, TWO_THIRDS, 0.245),),
        anions=PNICTIDES,
    ),
)

ABX3 = (
    Prototype(
        name="perovskite", example="SrTiO3", space_group=221, formula_units=1,
        cations=(_site(1, 12, CENTRE), _site(1, 6, ORIGIN)),
        anion_count=3, anion_coordination=6, anion_positions=((0.5, 0.0, 0.0),),
        anions=HALIDES + CHALCOGENIDES,
    ),
    Prototype(
        name="gdfeo3", example="CaTiO3", space_group=62, formula_units=4, b_over_a=1.404, c_over_a=0.989,
        cations=(_site(1, 8, (0.036, 0.25, 0.993)), _site(1, 6, (0.0, 0.0, 0.5))), anion_count=3, anion_coordination=5,
        anion_positions=((0.484, 0.25, 0.071), (0.289, 0.037, 0.711)),
        anions=HALIDES + CHALCOGENIDES,
    ),
    _hexagonal(
        name="2h-perovskite", example="CsNiCl3", space_group=194, formula_units=2, c_over_a=0.84,
        cations=(_site(1, 12, (THIRD, TWO_THIRDS, 0.75)), _site(1, 6, ORIGIN)), anion_count=3, anion_coordination=6,
        anion_positions=((0.155, 0.310, 0.25),),
        anions=HALIDES + CHALCOGENIDES,
    ),
    _hexagonal(
        name="ilmenite", example="FeTiO3", space_group=148, formula_units=6, c_over_a=2.767,
        cations=(_site(1, 6, (0.0, 0.0, 0.3553)), _site(1, 6, (0.0, 0.0, 0.1465))), anion_count=3, anion_coordination=4,
        anion_positions=((0.317, 0.023, 0.245),),
        anions=CHALCOGENIDES,
    ),
    _hexagonal(
        name="linbo3", example="LiNbO3", space_group=161, formula_units=6, c_over_a=2.693,
        cations=(_site(1, 6, (0.0, 0.0, 0.279)), _site(1, 6, ORIGIN)), anion_count=3, anion_coordination=4,
        anion_positions=((0.0476, 0.3433, 0.0634),),
        anions=CHALCOGENIDES,
    ),
)

AB2X4 = (
    Prototype(
        name="spinel", example="MgAl2O4", space_group=227, formula_units=8,
        cations=(_site(1, 4, ORIGIN), _site(2, 6, (0.625, 0.625, 0.625))), anion_count=4, anion_coordination=4,
        anion_positions=((0.3875, 0.3875, 0.3875),),
        anions=HALIDES + CHALCOGENIDES,
    ),
    Prototype(
        name="k2nif4", example="K2NiF4", space_group=139, formula_units=2, c_over_a=3.27,
        cations=(_site(2, 9, (0.0, 0.0, 0.352)), _site(1, 6, ORIGIN)), anion_count=4, anion_coordination=6,
        anion_positions=((0.0, 0.5, 0.0), (0.0, 0.0, 0.152)),
        anions=HALIDES + CHALCOGENIDES,
    ),
    Prototype(
        name="olivine", example="Mg2SiO4", space_group=62, formula_units=4, b_over_a=0.587, c_over_a=0.466,
        cations=(_site(2, 6, ORIGIN, (0.2774, 0.25, 0.9915)), _site(1, 4, (0.0940, 0.25, 0.4262))),
        anion_count=4, anion_coordination=4,
        anion_positions=((0.0913, 0.25, 0.7657), (0.4474, 0.25, 0.2215), (0.1633, 0.0331, 0.2774)),
        anions=HALIDES + CHALCOGENIDES,
    ),
)

ABX4 = (
    Prototype(
        name="zircon", example="ZrSiO4", space_group=141, formula_units=4, c_over_a=0.905,
        cations=(_site(1, 8, ORIGIN), _site(1, 4, (0.0, 0.0, 0.5))), anion_count=4, anion_coordination=3,
        anion_positions=((0.0, 0.184, 0.320),),
        anions=(*HALIDES, "O"),
    ),
    Prototype(
        name="scheelite", example="CaWO4", space_group=88, formula_units=4, c_over_a=2.170,
        cations=(_site(1, 8, (0.0, 0.0, 0.5)), _site(1, 4, ORIGIN)), anion_count=4, anion_coordination=3,
        anion_positions=((0.2413, 0.1511, 0.0861),),
        anions=(*HALIDES, "O"),
    ),
)

HIGHER_TERNARIES = (
    Prototype(
        name="pyrochlore", example="Y2Ti2O7", space_group=227, formula_units=8,
        cations=(_site(2, 8, (0.625, 0.625, 0.625)), _site(2, 6, (0.125, 0.125, 0.125))),
        anion_count=7, anion_coordination=4, anion_positions=((0.205, 0.0, 0.0), CENTRE),
        anions=("F", "O", "S"),
    ),
    Prototype(
        name="trirutile", example="MgTa2O6", space_group=136, formula_units=2, c_over_a=1.95,
        cations=(_site(1, 6, ORIGIN), _site(2, 6, (0.0, 0.0, 0.332))), anion_count=6, anion_coordination=3,
        anion_positions=((0.306, 0.306, 0.0), (0.298, 0.298, 0.325)),
        anions=("F", "O"),
    ),
    Prototype(
        name="k2ptcl6", example="K2PtCl6", space_group=225, formula_units=4,
        cations=(_site(2, 12, QUARTER), _site(1, 6, ORIGIN)), anion_count=6, anion_coordination=5,
        anion_positions=((0.24, 0.0, 0.0),),
        anions=HALIDES,
    ),
)

QUATERNARIES = (
    Prototype(
        name="elpasolite", example="K2NaAlF6", space_group=225, formula_units=4,
        cations=(_site(2, 12, QUARTER), _site(1, 6, CENTRE), _site(1, 6, ORIGIN)), anion_count=6, anion_coordination=6,
        anion_positions=((0.235, 0.0, 0.0),),
        anions=(*HALIDES, "O"),
    ),
    Prototype(
        name="stannite", example="Cu2FeSnS4", space_group=121, formula_units=2, c_over_a=1.97,
        cations=(_site(2, 4, (0.0, 0.5, 0.25)), _site(1, 4, ORIGIN), _site(1, 4, (0.0, 0.0, 0.5))),
        anion_count=4, anion_coordination=4, anion_positions=((0.245, 0.245, 0.130),),
        anions=CHALCOGENIDES,
    ),
    _hexagonal(
        name="colquiriite", example="LiCaAlF6", space_group=163, formula_units=2, c_over_a=1.925,
        cations=(_site(1, 6, (THIRD, TWO_THIRDS, 0.25)), _site(1, 6, ORIGIN), _site(1, 6, (TWO_THIRDS, THIRD, 0.25))),
        anion_count=6, anion_coordination=3, anion_positions=((0.3769, 0.0312, 0.1435),),
        anions=HALIDES,
    ),
)

PROTOTYPES: tuple[Prototype, ...] = (
    *MX, *MX2, *ANTI_TYPES, *M2X3, *MX3, *ABX2, *ABX_AB2X2, *ABX3, *AB2X4, *ABX4, *HIGHER_TERNARIES, *QUATERNARIES,
)
