"""What the benchmarks run on."""

from benchmarks.data import prepare, source_of
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack


def test_a_cell_packed_from_the_originals_files_is_the_one_that_the_source_itself_gives(tmp_path):
    source = source_of("synthetic", 12)
    cell = prepare(source, 128, tmp_path / "work")
    pack(source, tmp_path / "direct", PackOptions(split="official", short_side=128, samples_per_shard=64), workers=1)
    tars = [path.read_bytes() for path in sorted(cell.shards.glob("*.tar"))]
    assert tars == [path.read_bytes() for path in sorted((tmp_path / "direct").glob("*.tar"))]
    originals = prepare(source, 0, tmp_path / "work")
    assert len(list((originals.folder / "files" / "images").iterdir())) == 12
