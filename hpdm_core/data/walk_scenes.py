"""The scenes of `hpdm prep vizdoom`: what walls, floors and ceilings are made of, and the plan.

Textures and objects are named as in Freedoom's freedoom2.wad. Left out are animated textures, whose
frame depends on the clock of the machine, and everything that shows blood, bodies or weapons.
"""

from dataclasses import dataclass

SKY = "F_SKY1"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scene, which is one class of the data set.

    Args:
        name: the class.
        words: the scene within a caption, as in 'walking forward in <words>'.
        walls: wall textures; the first covers most walls, the others some.
        floor: floor texture.
        patch: texture of parts of the floor.
        ceiling: ceiling texture, or `SKY`.
        lamp: ceiling texture between the pillars, brighter than the rest.
        sky: texture behind a ceiling that is `SKY`.
        height: of the ceiling, in map units; the eye is at 41.
        light: of the scene, 0 to 255.
        pitch: distance between pillars, in cells.
        joined: share of gaps between neighbouring pillars that a wall closes.
        blocks: side textures of boxes that stand in the way; empty for none.
        block_top: their top.
        things: engine numbers of the objects that stand about.
    """

    name: str
    words: str
    walls: tuple[str, ...]
    floor: str
    patch: str
    ceiling: str
    lamp: str
    sky: str = "SKY1"
    height: int = 128
    light: int = 208
    pitch: int = 5
    joined: float = 0.5
    blocks: tuple[str, ...] = ()
    block_top: str = ""
    things: tuple[int, ...] = ()


SCENES = (
    Scene(
        name="brick-maze", words="a brick maze",
        walls=("ZZWOLF11", "ZZWOLF11", "ZZWOLF11", "ZZWOLF12"), floor="AQF046", patch="AQF046",
        ceiling="FLAT19", lamp="FLAT17", joined=0.6,
    ),
    Scene(
        name="hedge-garden", words="a hedge garden", walls=("A-CAMO4",), floor="AQF022",
        patch="AQF048", ceiling=SKY, lamp=SKY, sky="WALKSKY1", light=240, joined=0.45,
        things=(54, 43),
    ),
    Scene(
        name="rock-cave", words="a rock cave", walls=("ROCK4",), floor="RROCK16", patch="RROCK12",
        ceiling="RROCK16", lamp="RROCK16", height=144, light=224, things=(47,),
    ),
    Scene(
        name="lava-cavern", words="a lava cavern", walls=("CRACKLE2", "ASHWALL4"), floor="RROCK02",
        patch="RROCK03", ceiling="RROCK03", lamp="RROCK03", light=224, joined=0.35,
    ),
    Scene(
        name="white-temple", words="a white temple", walls=("STONEW5",), floor="FLOOR0_7",
        patch="FLAT14", ceiling=SKY, lamp=SKY, sky="WALKSKY1", light=255, pitch=4, joined=0.1,
    ),
    Scene(
        name="wooden-library", words="a wooden library",
        walls=("PANBOOK", "PANBOOK", "PANEL2", "PANBOOK"), floor="FLOOR1_6", patch="FLOOR0_2",
        ceiling="CEIL3_1", lamp="CEIL3_4", things=(35,),
    ),
    Scene(
        name="tech-base", words="a tech base",
        walls=("SILVER2", "SILVER3", "COMPSTA1", "COMPSTA2"), floor="FLAT23", patch="FLAT4",
        ceiling="FLAT20", lamp="GRNLITE1", joined=0.45, things=(2028,),
    ),
    Scene(
        name="blue-vault", words="a blue vault", walls=("ZZWOLF9",), floor="FLAT3", patch="FLAT14",
        ceiling="CEIL4_3", lamp="AQF062", light=240,
    ),
    Scene(
        name="desert-ruins", words="desert ruins", walls=("STWALL", "BIGWALL"), floor="RROCK11",
        patch="FLOOR4_6", ceiling=SKY, lamp=SKY, sky="WALKSKY2", light=240, joined=0.3,
    ),
    Scene(
        name="crate-warehouse", words="a warehouse of crates", walls=("AQMETL14", "AQMETL13"),
        floor="FLAT5_4", patch="AQF018", ceiling="AQF017", lamp="AQF060", height=192, pitch=9,
        joined=0.0, blocks=("CRATE1", "CRATE2"), block_top="CRATOP2",
    ),
    Scene(
        name="neon-corridor", words="a corridor of neon lights",
        walls=("BASE2", "AQLITE09", "BASE2", "AQLITE13", "BASE2", "AQLITE07"), floor="AQF026",
        patch="AQF026", ceiling="AQF024", lamp="AQF059", light=200, joined=0.6,
    ),
    Scene(
        name="mountain-canyon", words="a mountain canyon", walls=("SP_ROCK1",), floor="MFLR8_3",
        patch="AQF067", ceiling=SKY, lamp=SKY, sky="P-SKY1", height=176, light=224, joined=0.4,
    ),
)  # fmt: skip
WALK_CLASSES = tuple(scene.name for scene in SCENES)
