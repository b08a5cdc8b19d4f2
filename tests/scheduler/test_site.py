"""The site file: defaults, every key, what is refused and how, where it is looked for, the round trip."""

from __future__ import annotations

import dataclasses
import os
import sys
import tomllib
from pathlib import Path

import pytest

from hpcrl.errors import InputError
from hpcrl.scheduler import Launch, Limits, Resources, Site, read_site, site_text
from hpcrl.scheduler.site import site_from_text
from hpcrl.scheduler.variables import expand

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "slurm" / "site.example.toml"


def site(text: str, tmp_path: Path) -> Site:
    path = tmp_path / "site.toml"
    path.write_text(text)
    path.chmod(0o644)
    return read_site(path, {})


def refused(text: str, tmp_path: Path) -> str:
    with pytest.raises(InputError) as error:
        site(text, tmp_path)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "site.toml"))
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / 'site.toml'}: ")


def test_the_example_holds_every_key_with_its_default(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    tables = tomllib.loads(text)
    for name, kind in (("launch", Launch), ("limits", Limits), ("resources", Resources)):
        assert list(tables[name]) == [field.name for field in dataclasses.fields(kind)]
    assert site(text, tmp_path) == site("", tmp_path) == read_site(None, {"HOME": str(tmp_path)})


def test_the_examples_of_the_page_are_read(tmp_path: Path) -> None:
    blocks = (ROOT / "docs" / "site.md").read_text().split("```toml\n")[1:]
    assert len(blocks) == 2
    gpus, image = (site(block.partition("```")[0], tmp_path) for block in blocks)
    assert gpus.resources("advantage").gpus_per_rank == 1
    assert (image.launch.python, image.launch.instruction_set) == ("python3", "avx2")


def test_every_key_is_kept(tmp_path: Path) -> None:
    made = site(
        """
        name = "Höchst leistungsfähig 🚀"
        [launch]
        mpi = "mpirun"
        setup = ["module load a", 'export A="b c"']
        prefix = "apptainer exec 'my image.sif'"
        python = "/opt/python"
        scratch = "$LOCAL"
        submit_from_jobs = false
        gres = "gpu:h100:{count}"
        instruction_set = "generic"
        [limits]
        signal_lead_seconds = 30
        array_throttle = 8
        max_array_size = 100
        max_jobs = 50
        window = 5
        retries = 0
        memory_growth = 1.5
        time_growth = 2
        max_memory_gb = 40
        max_time_minutes = 600
        [resources]
        account = "abc"
        partition = "cpu,long"
        qos = "normal"
        constraint = "a&(b|c)"
        time_minutes = 5
        memory_gb_per_rank = 4
        cpus_per_rank = 3
        gpus_per_rank = 1
        nodes = 2
        extra = ["--exclusive", "-x", "--mail-type=END"]
        """,
        tmp_path,
    )
    launch = Launch(
        *("mpirun", ("module load a", 'export A="b c"'), "apptainer exec 'my image.sif'", "/opt/python", "$LOCAL"),
        *(False, "gpu:h100:{count}", "generic"),
    )
    limits = Limits(30, 8, 100, 50, 5, 0, 1.5, 2.0, 40.0, 600)
    resources = Resources(
        *("abc", "cpu,long", "normal", "a&(b|c)", 5, 4.0, 3, 1, 2, ("--exclusive", "-x", "--mail-type=END"))
    )
    assert made == Site("Höchst leistungsfähig 🚀", launch, limits, resources)
    assert made.source == tmp_path / "site.toml"
    assert site_from_text(site_text(made)) == made


def test_a_segment_overrides_only_what_it_says(tmp_path: Path) -> None:
    made = site(
        """
        [resources]
        account = "abc"
        partition = "cpu"
        constraint = "skylake"
        time_minutes = 30
        cpus_per_rank = 2
        extra = ["--exclusive"]
        [segments.learn]
        partition = "gpu"
        constraint = ""
        cpus_per_rank = 0
        extra = []
        [segments."a.b"]
        """,
        tmp_path,
    )
    learn, play = made.resources("learn"), made.resources("play")
    assert (learn.partition, learn.constraint, learn.cpus_per_rank, learn.extra) == ("gpu", None, None, ())
    assert (learn.account, learn.time_minutes) == ("abc", 30)
    assert play == made.default == made.resources("a.b")
    assert site_from_text(site_text(made)) == made


def test_the_resolved_site_of_a_run_names_its_interpreter(tmp_path: Path) -> None:
    assert site("", tmp_path).launch.python == sys.executable
    assert site("[launch]\nprefix = 'apptainer exec a.sif'", tmp_path).launch.python == "python3"
    assert f'python = "{sys.executable}"' in site_text(site("", tmp_path))


@pytest.mark.parametrize("text", ['a "quoted" \\ name', "tab-free é 漢 🚀", "# no comment", "'single'", "$HOME `x`"])
def test_texts_of_every_kind_come_back(text: str) -> None:
    made = Site(name=text, launch=Launch(python="python3", setup=(text, "b")), segments={"a.b": Resources(qos="q")})
    assert site_from_text(site_text(made)) == made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("launche = 1", "a site file: no key is named 'launche'; did you mean 'launch'?"),
        ("[limits]\nwindows = 3", "[limits]: no key is named 'windows'; did you mean 'window'?"),
        ("[resources]\npartitions = 'a'", "[resources]: no key is named 'partitions'; did you mean 'partition'?"),
        ("[segments.learn]\ngpu_per_rank = 1", "[segments.learn]: no key is named 'gpu_per_rank'; did you mean"),
        ("[limits]\nwindow = 1", "limits.window: want a whole number >= 2, given 1; correct it"),
        ("[limits]\nwindow = true", "limits.window: want a whole number >= 2, given True"),
        ("[limits]\nretries = -1", "limits.retries: want a whole number >= 0, given -1"),
        ("[limits]\nretries = 1.5", "limits.retries: want a whole number >= 0, given 1.5"),
        ("[limits]\nmemory_growth = 0.5", "limits.memory_growth: want a number >= 1, given 0.5"),
        ("[limits]\nmemory_growth = nan", "limits.memory_growth: want a number >= 1, given nan"),
        ("[limits]\ntime_growth = inf", "limits.time_growth: want a number >= 1, given inf"),
        ("[resources]\ntime_minutes = '60'", "resources.time_minutes: want a whole number >= 1, given '60'"),
        ("[resources]\nnodes = -1", "resources.nodes: want a whole number >= 1, or 0 (not said), given -1"),
        ("[resources]\npartition = 'a b'", "resources.partition: want one word (no blanks), given 'a b'"),
        ("[resources]\npartition = 3", "resources.partition: want one word (no blanks), given 3"),
        ("[segments.learn]\naccount = 'a b'", "segments.learn.account: want one word (no blanks), given 'a b'"),
        ("[launch]\nsetup = 'module load x'", 'launch.setup: want a list like ["...", "..."]'),
        ("[launch]\nsetup = [3]", "launch.setup: want a list"),
        ('[launch]\nsetup = ["a\\nb"]', "launch.setup: want a list"),
        ('[launch]\nmpi = "srun\\n#SBATCH -p x"', "launch.mpi: want the command that starts MPI ranks, given"),
        ('name = "a\\u007fb"', "name: want one line of text"),
        ("name = ''", "name: want one line of text, given ''"),
        ("[launch]\nsubmit_from_jobs = 'yes'", "launch.submit_from_jobs: want true or false, given 'yes'"),
        ("[launch]\ngres = 'gpu'", "launch.gres: want a text with {count}, as gpu:{count}, given 'gpu'"),
        ("[launch]\ngres = 'gpu:{n}:{count}'", "launch.gres: want a text with {count}"),
        (
            "[launch]\ninstruction_set = 'avx3'",
            "launch.instruction_set: want one of generic, avx2, avx512, given 'avx3'",
        ),
        ("[resources]\nextra = ['exclusive']", "resources.extra: want options of sbatch, each beginning with '-'"),
        ("[resources]\nextra = ['--exclusive --mem 3']", "resources.extra: want a list"),
        ("[resources]\nextra = ['--output=x']", "resources.extra: hpcrl itself says --output to sbatch"),
        ("[resources]\nextra = ['-d', ]", "resources.extra: hpcrl itself says --dependency to sbatch"),
        ("[resources]\nextra = ['--time=5']", "resources.extra: given '--time=5'; say it with the key time_minutes"),
        ("[resources]\nextra = ['-pgpu']", "resources.extra: given '-pgpu'; say it with the key partition instead"),
        ("launch = 3", "launch: want a table, given 3; write a line [launch]"),
        ("segments = 3", "segments: want a table"),
        ("[segments]\nlearn = 3", "segments.learn: want a table"),
        ("[segments.'a b']", "[segments.a b]: want letters, digits, '_' and '.'"),
        ("[limits", "want TOML, given something else"),
        ("[resources]\ntime_minutes = 2", "limits.signal_lead_seconds: want less than the time limit"),
        ("[segments.x]\ntime_minutes = 1", "limits.signal_lead_seconds: want less than the time limit, segments.x"),
        (
            "[limits]\nmax_time_minutes = 30",
            "resources.time_minutes: want at most limits.max_time_minutes = 30, given 60",
        ),
        (
            "[limits]\nmax_memory_gb = 2\n[segments.x]\nmemory_gb_per_rank = 3",
            "segments.x.memory_gb_per_rank: want at most limits.max_memory_gb = 2, given 3",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(text: str, words: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(words)


def test_values_given_from_python_are_checked_as_well() -> None:
    with pytest.raises(InputError, match=r"limits.window: want a whole number >= 2, given 1"):
        Limits(window=1)
    with pytest.raises(InputError, match=r"resources.extra: hpcrl itself says --array"):
        Resources(extra=("--array=0-3",))
    assert Resources(partition="").partition is None
    assert Launch(setup=["a"]).setup == ("a",)  # type: ignore[arg-type]


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here, named = tmp_path / "home", tmp_path / "here", tmp_path / "named.toml"
    here.mkdir()
    monkeypatch.chdir(here)
    environment = {"HOME": str(home)}
    assert (read_site(None, environment).name, read_site(None, environment).source) == ("cluster", None)
    for path, name in (
        (home / ".config" / "hpcrl" / "site.toml", "home"),
        (here / "site.toml", "here"),
        (named, "named"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'name = "{name}"\n')
        path.chmod(0o644)
        environment |= {"HPCRL_SITE": str(named)} if path == named else {}
        assert read_site(None, environment).name == name
    assert read_site(here / "site.toml", environment).name == "here"


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "nothing.toml"
    with pytest.raises(InputError, match=r"--site: want a site file, given .*nothing.toml, which is not there"):
        read_site(missing, {})
    with pytest.raises(InputError, match=r"\$HPCRL_SITE: want a site file, given .*nothing.toml, which is not there"):
        read_site(None, {"HPCRL_SITE": str(missing)})


def test_a_file_that_others_may_write_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("[launch]\nsetup = ['rm -rf ~']\n")
    path.chmod(0o666)
    with pytest.raises(InputError, match="everybody may write to; read it, then: chmod go-w") as error:
        read_site(path, {})
    assert str(error.value).count(str(path)) == 2  # whose file, and the command that mends it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody else")
def test_a_file_of_another_user_found_by_itself_is_refused_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.toml").write_text("name = 'theirs'\n")
    os.chown(tmp_path / "site.toml", 65534, 65534)
    with pytest.raises(InputError, match="owned by user nobody"):
        read_site(None, {})


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(b"name = '\xff\xfe'\n")
    with pytest.raises(InputError, match="want UTF-8 text, given other bytes"):
        read_site(path, {})


def test_a_segment_that_the_pipeline_does_not_have_is_refused(tmp_path: Path) -> None:
    made = site("[segments.plya]\ngpus_per_rank = 1\n", tmp_path)
    with pytest.raises(InputError, match=r"\[segments\]: no key is named 'plya'; did you mean 'play'\?"):
        made.refuse_unknown_segments(["learn", "play"])
    made.refuse_unknown_segments(["plya"])


def test_memory_and_time_grow_as_far_as_allowed() -> None:
    limits = Limits(memory_growth=2.0, time_growth=1.5, max_memory_gb=6.0, max_time_minutes=100)
    made, asked = Site(limits=limits), Resources(memory_gb_per_rank=2.0, time_minutes=60, account="a")
    more = made.more_memory(asked)
    assert more == dataclasses.replace(asked, memory_gb_per_rank=4.0)
    most = made.more_memory(more)
    assert most == dataclasses.replace(asked, memory_gb_per_rank=6.0)
    assert made.more_memory(most) is None
    assert made.more_memory(Resources()) is None  # the cluster's default is not known
    longer = made.more_time(asked)
    assert longer == dataclasses.replace(asked, time_minutes=90)
    assert made.more_time(longer) == dataclasses.replace(asked, time_minutes=100)
    assert made.more_time(dataclasses.replace(asked, time_minutes=100)) is None
    assert (Site().more_memory(asked), Site().more_time(asked)) == (None, None)
    assert Site(limits=Limits(time_growth=1.01)).more_time(Resources(time_minutes=3)) == Resources(time_minutes=4)


@pytest.mark.parametrize(
    ("text", "environment", "wanted"),
    [
        ("/tmp", {}, "/tmp"),
        ("$A/b", {"A": "/x"}, "/x/b"),
        ("${A}${B:-}", {"A": "/x"}, "/x"),
        ("${SLURM_TMPDIR:-${TMPDIR:-/tmp}}", {}, "/tmp"),
        ("${SLURM_TMPDIR:-${TMPDIR:-/tmp}}", {"TMPDIR": "/t"}, "/t"),
        ("${SLURM_TMPDIR:-${TMPDIR:-/tmp}}", {"SLURM_TMPDIR": "/s", "TMPDIR": "/t"}, "/s"),
        ("${A:-${B}}", {"A": "a"}, "a"),
        ("${A:-x}", {"A": ""}, "x"),
        ("$A", {"A": "$B `rm`"}, "$B `rm`"),
    ],
)
def test_variables_are_expanded_as_a_shell_would(text: str, environment: dict[str, str], wanted: str) -> None:
    assert expand(text, environment, "launch.scratch") == wanted


@pytest.mark.parametrize("text", ["$A", "${A:-${B}}", "$", "$(date)", "${A", "${A:=b}", "${!A}", "`date` $1"])
def test_other_uses_of_a_dollar_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"launch.scratch: want"):
        expand(text, {}, "launch.scratch")


def test_an_instruction_set_is_told_to_every_library() -> None:
    assert Launch().instruction_variables() == {}
    assert Launch(instruction_set="avx2").instruction_variables() == {
        "HPCRL_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
