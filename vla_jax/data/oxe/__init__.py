"""Open X-Embodiment: what the numbers of each data set mean, and published mixtures of them.

For example, a data set whose bounds are not published:

    kuka = find_record("kuka")
    source = EpisodeSource("kuka", path, layout=kuka.layout(measure(kuka, path)))
"""
