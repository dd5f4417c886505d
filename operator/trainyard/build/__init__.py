"""The Kubernetes objects that a job owns, from its spec alone. Pure: nothing is read from or sent to a cluster.

    rendered = render(job, spec, settings)                    # InvalidTemplate: tell the user, do not try again
    trial = pod(rendered, 0, 1, None)                         # create with dryRun=All, fieldValidation=Strict
    rendered = with_demand(rendered, demand_of(answer))       # LimitRanges, webhooks and defaults counted
    create(rendering_configmap(rendered))                     # and later: read_rendering(configmap) -> RenderedJob
    for thing in belongings(job, rendered.service_account, own=...): create(thing)
    create(pod(rendered, index, incarnation, node))
"""
