from gda.report.aggregate import aggregate
from gda.report.collect import read_study


def labels_of(study):
    (table,) = aggregate(read_study(study.folder))
    return [row.label for row in table.rows]


def kd_config(temperature, seed=0, alignment="none", epochs=30):
    return (
        f"seed: {seed}\nstudy: s{seed}\nrecipe: {{epochs: {epochs}}}\nalignment: {{name: {alignment}}}\n"
        f"distiller:\n  terms:\n    kd: {{temperature: {temperature}, weight: 1.0}}\n"
    )


def test_equal_labels_show_the_values_that_differ(study):
    for temperature in (10, 2, 4.5):
        for seed in (0, 1):
            config = kd_config(temperature, seed)
            study.run(f"kd T{temperature}", seed, last=90.0, config=config)
    assert labels_of(study) == [
        "kd (terms.kd.temperature=2)",
        "kd (terms.kd.temperature=4.5)",
        "kd (terms.kd.temperature=10)",
    ]


def test_a_label_that_is_alone_stays_short(study):
    study.run("kd", 0, last=90.0, config=kd_config(2))
    study.run("dkd", 0, last=90.0, config=kd_config(4))
    assert labels_of(study) == ["dkd", "kd"]


def test_an_aligned_row_shows_the_values_of_its_twin(study):
    study.run("kd T2", 0, last=90.0, config=kd_config(2))
    study.run("kd T4", 0, last=90.0, config=kd_config(4))
    study.run("kd+gda T4", 0, last=90.0, config=kd_config(4, alignment="gda"))
    assert labels_of(study) == [
        "kd (terms.kd.temperature=2)",
        "kd (terms.kd.temperature=4)",
        "kd+gda (terms.kd.temperature=4)",
    ]


def test_without_configs_the_group_tells_rows_apart(study):
    study.run("kd a", 0, last=90.0)
    (study.run("kd b", 0, last=90.0) / "config.yaml").write_text("distiller: {terms: [")
    labels = labels_of(study)
    assert len(set(labels)) == 2
    assert all(label.startswith("kd [group ") for label in labels)


def test_label_free_training_is_always_said(study):
    study.run("kd", 0, last=90.0, ground_truth="teacher")
    assert labels_of(study) == ["kd (ground_truth=teacher)"]


def test_many_differing_values_are_cut_but_stay_distinct(study):
    for value in (1, 2):
        config = "distiller: {" + ", ".join(f"{key}: {value}" for key in "abcdef") + "}"
        study.run(f"kd {value}", 0, last=90.0, config=config)
    first, second = labels_of(study)
    assert first != second
    assert "a=1, b=1, c=1, 3 more, group" in first + second


def test_rows_under_other_settings_say_so(study):
    long = {"vanilla_group": "f" * 12}
    study.run("vanilla", 0, last=88.0, config=kd_config(0, epochs=30))
    study.run("vanilla long", 0, last=89.0, config=kd_config(0, epochs=60), **long, group="f" * 12)
    study.run("kd", 0, last=90.0, config=kd_config(2, epochs=30))
    study.run("dkd", 0, last=91.0, config=kd_config(2, epochs=60), **long)
    assert labels_of(study) == [
        "vanilla (recipe.epochs=30)",
        "vanilla (recipe.epochs=60)",
        "dkd (recipe.epochs=60)",
        "kd (recipe.epochs=30)",
    ]
    (table,) = aggregate(read_study(study.folder))
    compared = {row.label: row.difference["vanilla", "last"] for row in table.rows}
    assert compared["dkd (recipe.epochs=60)"].mean == 2.0
    assert compared["kd (recipe.epochs=30)"].mean == 2.0
