"""The published data sets: files, arrays, classes and official splits. Nothing is downloaded.

Names, shapes and SHA-256 sums are facts about the files, from the sources that each entry names; a sum or number type that
is not published there is None. Class counts are those of the literature that describes the data sets, unless noted.
"""

from __future__ import annotations

from jobs.benchmark.dataset import DataArray, DataSet, IndexSplit, MaskSplit, SourceArray

#: A public fetcher, whose source code states names, shapes and sums of the files that it downloads.
FETCHER = "https://github.com/songyz2019/rs-fusion-datasets"
CUBE = ("y", "x", "band")


def _mask(file: str, variable: str, shape: tuple[int, int]) -> DataArray:
    return DataArray(file, variable, shape)


def _classes(*names: str) -> dict[int, str]:
    return dict(enumerate(names, 1))


HOUSTON_2013 = DataSet(
    name="houston2013",
    title="Houston 2013: hyperspectral and LiDAR, IEEE GRSS Data Fusion Contest 2013",
    folder="Houston2013",
    origin="https://github.com/likyoo/Multimodal-Remote-Sensing-Toolkit",
    terms="of the contest: https://machinelearning.ee.uh.edu/?page_id=459",
    facts=f"{FETCHER}, fetch_houston2013_mmr",
    files={
        "HSI.mat": "6a0edba3c224df411623ed5774fc34e91929ab341709859b2f56cc38dbb3c6fd",
        "LiDAR.mat": "7aa956e7c371fd29a495f0cb9bb8f572aaa4065fcfeda2b3e854a5cef74b35ad",
        "TRLabel.mat": "96ce863eaf4dc548c3140a480dee33c812d46194ae5ed345fed6e71a3d72b527",
        "TSLabel.mat": "46bd849d556c80ed67b33f23dd288eafa7ac9f97a847390be373b702b0bf5a45",
    },
    sources=(
        SourceArray("hyperspectral", DataArray("HSI.mat", "HSI", (349, 1905, 144), CUBE)),
        SourceArray("lidar", DataArray("LiDAR.mat", "LiDAR", (349, 1905))),
    ),
    labels=None,
    classes=_classes(
        "Healthy grass", "Stressed grass", "Synthetic grass", "Trees", "Soil", "Water", "Residential", "Commercial",
        "Road", "Highway", "Railway", "Parking lot 1", "Parking lot 2", "Tennis court", "Running track",
    ),
    counts=(1251, 1254, 697, 1244, 1242, 325, 1268, 1244, 1252, 1227, 1235, 1233, 469, 428, 660),
    official=MaskSplit(
        _mask("TRLabel.mat", "TRLabel", (349, 1905)), _mask("TSLabel.mat", "TSLabel", (349, 1905))
    ),
)  # fmt: skip  # a list of names: one per line would fill a page

HOUSTON_2018 = DataSet(
    name="houston2018",
    title="Houston 2018: hyperspectral and LiDAR, IEEE GRSS Data Fusion Contest 2018, on the grid of its labels",
    folder="Houston2018",
    origin="https://github.com/oucailab/DCMNet",
    terms="of the contest, available on request: https://machinelearning.ee.uh.edu/2018-ieee-grss-data-fusion-challenge-"
    "fusion-of-multispectral-lidar-and-hyperspectral-data/",
    facts=f"{FETCHER}, fetch_houston2018_ouc",
    files={
        "houston_hsi.mat": "35a4a9a2bad193740274c6388f18284fc586a2ef5bde579368796fbeec2a58ea",
        "houston_lidar.mat": "a55fa2d99684078dd0d8039b2ca1349190d86766426a25e8dff7fbd5df036d9b",
        "houston_gt.mat": "93f268e576fcf149fab8cb71b4a79691b420e9a3f369f0cbc73e2029639f6286",
        "houston_index.mat": "2d513db197f105b6b82e7039909878862fbe48750a93184017f22ab8f288d0b3",
    },
    sources=(
        SourceArray("hyperspectral", DataArray("houston_hsi.mat", "houston_hsi", (1202, 4768, 50), CUBE, "uint16")),
        SourceArray("lidar", DataArray("houston_lidar.mat", "houston_lidar", (1202, 4768), dtype="float32")),
    ),
    labels=DataArray("houston_gt.mat", "houston_gt", (1202, 4768), dtype="uint8"),
    classes=_classes(
        "Healthy grass", "Stressed grass", "Artificial turf", "Evergreen trees", "Deciduous trees", "Bare earth", "Water",
        "Residential buildings", "Non-residential buildings", "Roads", "Sidewalks", "Crosswalks", "Major thoroughfares",
        "Highways", "Railways", "Paved parking lots", "Unpaved parking lots", "Cars", "Trains", "Stadium seats",
    ),
    official=IndexSplit(
        DataArray("houston_index.mat", "houston_train", (None, 2), ("pixel", "coordinate")),
        DataArray("houston_index.mat", "houston_test", (None, 2), ("pixel", "coordinate")),
    ),
    block=96,
)  # fmt: skip  # a list of names: one per line would fill a page

TRENTO_CLASSES = _classes("Apple trees", "Buildings", "Ground", "Woods", "Vineyard", "Roads")
TRENTO_COUNTS = (4034, 2903, 479, 9123, 10501, 3174)
TRENTO = DataSet(
    name="trento",
    title="Trento: hyperspectral and LiDAR, with the usual split",
    folder="Trento",
    origin="the files HSI.mat, LiDAR.mat, TRLabel.mat and TSLabel.mat that most code for this data set reads",
    terms="not stated",
    facts=f"{FETCHER}, _fetch_trento_mat",
    files={
        "HSI.mat": "44a84b4fe8bab9b2f5ec11af32602436ccc97653b7ae8c3283334da7d221c053",
        "LiDAR.mat": "d99347532e7b18982c9537fd4de43574dd64f9b35ccab251459e7b483ddd43df",
        "TRLabel.mat": "593976a1bef4edf06ec543926811509f997454557aa9313ed6165b3012c26e07",
        "TSLabel.mat": "629ae33464907098cacf58549996711bf7079f036946f9208fde8a67842ab499",
    },
    sources=(
        SourceArray("hyperspectral", DataArray("HSI.mat", "HSI", (166, 600, 63), CUBE)),
        SourceArray("lidar", DataArray("LiDAR.mat", "LiDAR", (166, 600))),
    ),
    labels=None,
    classes=TRENTO_CLASSES,
    counts=TRENTO_COUNTS,
    official=MaskSplit(_mask("TRLabel.mat", "TRLabel", (166, 600)), _mask("TSLabel.mat", "TSLabel", (166, 600))),
    block=24,
)
TRENTO_ITALY = DataSet(
    name="trento-italy",
    title="Trento: the files Italy_*.mat, with two LiDAR bands and without an official split",
    folder="Trento-b4afc449ce5d6936ddc04fe267d86f9f35536afd",
    origin="https://github.com/tyust-dayu/Trento/tree/b4afc449ce5d6936ddc04fe267d86f9f35536afd",
    terms="not stated",
    facts=f"{FETCHER}, fetch_trento",
    files={
        "Italy_hsi.mat": "7b965fd405314b5c91451042e547a1923be6f5a38c6da83969032cff79729280",
        "Italy_lidar.mat": "a04dc90368d6a7b4f9d3936024ba9fef4105456c090daa14fff31b8b79e94ab1",
        "allgrd.mat": "7e3fb2a2ea22c2661dfc768db3cb93c9643b324e7e64fadedfa57f5edbf1818f",
    },
    sources=(
        SourceArray("hyperspectral", DataArray("Italy_hsi.mat", "data", (166, 600, 63), CUBE, "float32")),
        SourceArray("lidar", DataArray("Italy_lidar.mat", "data", (166, 600, 2), CUBE, "float32")),
    ),
    labels=DataArray("allgrd.mat", "mask_test", (166, 600), dtype="uint8"),
    classes=TRENTO_CLASSES,
    counts=TRENTO_COUNTS,
    block=24,
)

MUUFL_CLASSES = _classes(
    "Trees", "Mostly grass", "Mixed ground", "Dirt and sand", "Road", "Water", "Shadow of buildings", "Buildings",
    "Sidewalk", "Yellow curb", "Cloth panels",
)  # fmt: skip  # a list of names: one per line would fill a page
#: Counted in the labels of the file gt.mat.
MUUFL_COUNTS = (23246, 4270, 6882, 1826, 6687, 466, 2233, 6240, 1385, 183, 269)
MUUFL_ORIGIN = "https://github.com/GatorSense/MUUFLGulfport"
MUUFL_FILE = "muufl_gulfport_campus_1_hsi_220_label.mat"
MUUFL = DataSet(
    name="muufl",
    title="MUUFL Gulfport: hyperspectral and LiDAR",
    folder="MUUFLGulfportSceneLabels",
    origin=f"{MUUFL_ORIGIN}, version 0.1",
    terms="MIT",
    facts=f"{FETCHER}, fetch_muufl",
    files={MUUFL_FILE: "69420a72866dff4a858ae503e6e2981af46f406a4ad8f4dd642efa43feb59edc"},
    sources=(
        SourceArray("hyperspectral", DataArray(MUUFL_FILE, "hsi.Data", (325, 220, 64), CUBE)),
        SourceArray("lidar", DataArray(MUUFL_FILE, "hsi.Lidar{1}.z", (325, 220, 2), CUBE)),
    ),
    labels=DataArray(MUUFL_FILE, "hsi.sceneLabels.labels", (325, 220)),
    unlabelled=-1,
    classes=MUUFL_CLASSES,
    counts=MUUFL_COUNTS,
    block=24,
)
LIDAR = DataArray("data_SAR_HR.mat", "lidar_data", (325, 220, 2), CUBE, "float32")
MUUFL_LIDAR = DataSet(
    name="muufl-lidar",
    title="MUUFL Gulfport, the LiDAR half alone: height and intensity as two sources",
    folder="muufl_lidar_gt",
    origin=f"{MUUFL_ORIGIN}; a repackaged copy",
    terms="MIT",
    facts="measured on the files",
    files={
        "data_SAR_HR.mat": "7b94f25fd0a65961fd2f0ae559c178d88d9f6203480c72274d2a7b86f5569138",
        "gt.mat": "d2b4cdfbba29699a94780291f4bc76356a1bbbc81212c291a1db7a5b091d38d4",
    },
    sources=(SourceArray("height", LIDAR, bands="1"), SourceArray("intensity", LIDAR, bands="2")),
    labels=DataArray("gt.mat", "labels", (325, 220), dtype="int16"),
    unlabelled=-1,
    classes=MUUFL_CLASSES,
    counts=MUUFL_COUNTS,
    block=24,
)

AUGSBURG = DataSet(
    name="augsburg",
    title="Augsburg: hyperspectral and Sentinel-1 SAR",
    folder="Augsburg",
    origin="https://github.com/oucailab/DCMNet",
    terms="of the original: https://mediatum.ub.tum.de/1657312",
    facts=f"{FETCHER}, fetch_augsburg_ouc",
    files={
        "augsburg_hsi.mat": "2f13839d7840b32f55e0489d6934776dcfded7f678e23a9d8c2c092573946583",
        "augsburg_sar.mat": "cd1dbfad2346f47e51d105b05e11aaefc872fe487a94bdc2913f4eaee3f8e82b",
        "augsburg_gt.mat": "065df71257f06c075ff3b37327c0fba75cc9146015a0f095a093fd12b9eaacbe",
        "augsburg_index.mat": "8bc57037447cb42dbf3a8478d42d4bc217a53a6a0b349c2d67db8c660bef2f43",
    },
    sources=(
        SourceArray("hyperspectral", DataArray("augsburg_hsi.mat", "augsburg_hsi", (332, 485, 180), CUBE, "uint16")),
        SourceArray("sar", DataArray("augsburg_sar.mat", "augsburg_sar", (332, 485, 4), CUBE, "float64")),
    ),
    labels=DataArray("augsburg_gt.mat", "augsburg_gt", (332, 485), dtype="uint8"),
    classes=_classes("Forest", "Residential area", "Industrial area", "Low plants", "Allotment", "Commercial area", "Water"),
    counts=(13507, 30329, 3851, 26857, 575, 1645, 1530),
    official=IndexSplit(
        DataArray("augsburg_index.mat", "augsburg_train", (None, 2), ("pixel", "coordinate")),
        DataArray("augsburg_index.mat", "augsburg_test", (None, 2), ("pixel", "coordinate")),
    ),
)

BERLIN = DataSet(
    name="berlin",
    title="Berlin: simulated EnMAP hyperspectral and Sentinel-1 SAR",
    folder="Berlin",
    origin="https://github.com/oucailab/DCMNet",
    terms="of the original: https://gfzpublic.gfz-potsdam.de/pubman/faces/ViewItemFullPage.jsp?itemId=item_1480927_5",
    facts=f"{FETCHER}, fetch_berlin_ouc",
    files={
        "berlin_hsi.mat": "580f397d9f249b4ec3f02b8cc570d910d765afa9f77b17d8a4f4799edee94b1f",
        "berlin_sar.mat": "a6cf2f86db7f1a02c340e813a7b46f9c6c58e297e1eb9b5fa19ed49244b2b8a7",
        "berlin_gt.mat": "dd9286cd565535857721627878de3cbebffa2dacc625b539474d16cba3a7343e",
        "berlin_index.mat": "1a66ec454ea95bbf5782525d9fcf9a04412a948b7b3aa6919ed324516d42a8b5",
    },
    sources=(
        # The fetcher states two number types for the hyperspectral array.
        SourceArray("hyperspectral", DataArray("berlin_hsi.mat", "berlin_hsi", (1723, 476, 244), CUBE)),
        SourceArray("sar", DataArray("berlin_sar.mat", "berlin_sar", (1723, 476, 4), CUBE, "float64")),
    ),
    labels=DataArray("berlin_gt.mat", "berlin_gt", (1723, 476), dtype="uint8"),
    classes=_classes(
        "Forest", "Residential area", "Industrial area", "Low plants", "Soil", "Allotment", "Commercial area", "Water"
    ),
    counts=(54954, 268642, 19566, 59282, 17426, 13305, 24824, 6672),
    official=IndexSplit(
        DataArray("berlin_index.mat", "berlin_train", (None, 2), ("pixel", "coordinate")),
        DataArray("berlin_index.mat", "berlin_test", (None, 2), ("pixel", "coordinate")),
    ),
    block=48,
)

PINES = DataArray("cube.tif", None, (144, 144, 200), CUBE, "uint16")
INDIAN_PINES = DataSet(
    name="indian-pines",
    title="Indian Pines: AVIRIS, bands 1 to 100 and 101 to 200 as two sources, as in the paper's comparison",
    folder="indian_pines",
    origin="https://www.orfeo-toolbox.org, the test data of its Debian source package, saved as GeoTIFF",
    terms="Apache-2.0 (the package)",
    facts="measured on the files",
    files={
        "cube.tif": "c339d2ab6d0ab1cef1973826c69687a5da2699203bf33e213ad2506485ef95bb",
        "gt.tif": "0e8f205a56bf6e5dc5241614f0877296fbb5db7c9c5a4af91234fbb068292197",
    },
    sources=(
        SourceArray("visible", PINES, bands="1-100"),
        SourceArray("infrared", PINES, bands="101-200", branch="wide"),
    ),
    labels=DataArray("gt.tif", None, (144, 144), dtype="uint8"),
    classes=_classes(
        "Alfalfa", "Corn-notill", "Corn-mintill", "Corn", "Grass-pasture", "Grass-trees", "Grass-pasture-mowed",
        "Hay-windrowed", "Oats", "Soybean-notill", "Soybean-mintill", "Soybean-clean", "Wheat", "Woods",
        "Buildings-Grass-Trees-Drives", "Stone-Steel-Towers",
    ),
    counts=(46, 1428, 830, 237, 483, 730, 28, 478, 20, 972, 2455, 593, 205, 1265, 386, 93),
    block=14,  # with larger ones, the buffer leaves some classes without training pixels
)  # fmt: skip  # a list of names: one per line would fill a page

CATALOG: dict[str, DataSet] = {
    entry.name: entry
    for entry in (
        HOUSTON_2013, HOUSTON_2018, TRENTO, TRENTO_ITALY, MUUFL, MUUFL_LIDAR, AUGSBURG, BERLIN, INDIAN_PINES,
    )
}  # fmt: skip  # a list of names: one per line would fill a page
