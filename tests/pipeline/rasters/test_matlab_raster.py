"""MATLAB files of versions 5 and 7.3: structs, sparse matrices and arrays of four axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters import matlab_raster
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import open_raster
from pipeline.rasters.variables import list_variables

ROWS, COLUMNS, BANDS, TIMES = 5, 7, 3, 2
CUBE = (np.arange(ROWS * COLUMNS * BANDS).reshape(ROWS, COLUMNS, BANDS) + 1).astype(np.uint16)
SERIES = np.stack([CUBE, CUBE + np.uint16(500)], axis=-1)
GT = scipy.sparse.csc_matrix(np.where(CUBE[..., 0] % 4 == 0, CUBE[..., 0], 0).astype(np.float64))


def version_5(folder: Path) -> str:
    scene = {"cube": CUBE, "info": {"gt": CUBE[..., 1], "name": "field"}}
    scipy.io.savemat(folder / "a.mat", {"scene": scene, "gt": GT, "series": SERIES, "text": "words"})
    return str(folder / "a.mat")


def version_7_3(folder: Path) -> str:
    """Write the same as MATLAB does: HDF5 with reversed axes, groups for structs and sparse matrices."""
    path = folder / "b.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["scene/cube"] = CUBE.T
        file["scene/info/gt"] = CUBE[..., 1].T
        file["series"] = SERIES.T
        file["gt/data"], file["gt/ir"], file["gt/jc"] = GT.data, GT.indices.astype("u8"), GT.indptr.astype("u8")
        file["gt"].attrs["MATLAB_sparse"] = np.uint64(ROWS)
        file["text"] = np.array([[119], [111]], np.uint16)
        file["text"].attrs["MATLAB_class"] = np.bytes_("char")
        file["#refs#/a"] = CUBE.T
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return str(path)


versions = pytest.mark.parametrize("write", [version_5, version_7_3])


def read(url: str, variable: str, **keys: Any) -> np.ndarray:
    with open_raster(RasterFile(url, variable, **keys)) as raster:
        values, valid = raster.read(Window(1, 2, 3, 4))
        assert valid.all()
        return values


@versions
def test_fields_of_structs_are_variables(tmp_path: Path, write: Any) -> None:
    url = write(tmp_path)
    found = read(url, "scene.cube", axes=("y", "x", "band"))
    assert (found == CUBE[1:4, 2:6].transpose(2, 0, 1)).all()
    assert (read(url, "scene.info.gt") == CUBE[1:4, 2:6, 1]).all()
    with pytest.raises(InputError, match=r"has no variable 'scene'; it has .*scene\.cube, scene\.info\.gt"):
        read(url, "scene")
    listed = {variable.name: variable.shape for variable in list_variables(url)}
    expected = {"scene.cube": CUBE.shape, "scene.info.gt": CUBE.shape[:2], "gt": CUBE.shape[:2], "series": SERIES.shape}
    assert listed == expected


@versions
def test_sparse_matrices_are_dense_rasters(tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(tmp_path)
    assert (read(url, "gt")[0] == GT.toarray()[1:4, 2:6]).all()
    monkeypatch.setattr(matlab_raster, "MAX_DENSE_BYTES", 100)
    with pytest.raises(InputError, match=r"\(gt\): is a sparse matrix of 5 x 7; too large"):
        read(url, "gt")


@versions
def test_one_position_of_a_fourth_axis_is_selected(tmp_path: Path, write: Any) -> None:
    url, axes = write(tmp_path), ("y", "x", "band", "time")
    for time in (1, 2):
        found = read(url, "series", axes=axes, select=(("time", time),))
        assert (found == SERIES[1:4, 2:6, :, time - 1].transpose(2, 0, 1)).all()
    with pytest.raises(InputError, match=r"Choose one value along time \(2\)"):
        read(url, "series", axes=axes)
    with pytest.raises(InputError, match=r"axis order of this 5 x 7 x 3 x 2 array is unknown"):
        read(url, "series")


def test_elements_of_a_cell_array_are_selected_as_in_matlab(tmp_path: Path) -> None:
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = {"z": CUBE, "name": "first"}, {"z": CUBE + np.uint16(9)}
    scipy.io.savemat(tmp_path / "c.mat", {"hsi": {"Data": CUBE, "Lidar": cells}})
    url = str(tmp_path / "c.mat")
    assert [v.name for v in list_variables(url)] == ["hsi.Data", "hsi.Lidar{1}.z", "hsi.Lidar{2}.z"]
    window = read(url, "hsi.Lidar{2}.z", axes=("y", "x", "band"))
    assert (window == CUBE[1:4, 2:6].transpose(2, 0, 1) + 9).all()
