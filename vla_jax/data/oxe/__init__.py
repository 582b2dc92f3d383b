"""Open X-Embodiment: what the numbers of each data set mean, and published mixtures of them.

record = records.find_record("kuka")
quantiles = measure(record, path)
EpisodeSource("kuka", path, layout=record.layout(quantiles))
"""
