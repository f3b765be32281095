from crosstime.report.tables import label_counts


def test_every_feature_is_counted_under_one_label(synthetic):
    data = synthetic.whole_data(n_features=60)
    rows = label_counts(data)
    assert sum(row.all for row in rows) == 60
    for i, features in enumerate(data.tasks.values()):
        assert sum(row.tasks[i][0] for row in rows) == features.has_class.sum()
        assert all(specific <= counted for counted, specific in (row.tasks[i] for row in rows))
