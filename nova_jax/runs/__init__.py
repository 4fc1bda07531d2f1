"""Training runs and their folders.

    config      TrainConfig: a whole run as one value; DataSource, Preview
    train       run(): folder, record, state, loop; the same command resumes
    build       the first state and the train step of an objective or of a distillation method
    preview     images from the EMA parameters while a run trains
    student     the config of a few-step student, from its teacher's record
    main        the command line of an experiment
    record      config.json, those of earlier versions included
    load        a run folder as a `TrainedRun`, for sampling

Experiment files take all of it from `nova_jax.experiment`, whoever samples from `nova_jax.generation`.
"""
