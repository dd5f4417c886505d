"""`spec.train`: what the shipped trainer is to do. The trainer reads this same class from the file it is given."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trainyard.api.base import Count, Model, Open, Path, Step, rules


class ModelConfig(Model):
    """Which model is trained. Built by Hugging Face transformers, from its published shape or from files."""

    model_config = ConfigDict(json_schema_extra=rules(
        ("has(self.size) || has(self.config) || has(self.path)",
         "model needs one of size, config or path"),
        ("!has(self.size) || self.size == 'tiny' || "
         "(self.size == '8x7b') == (has(self.family) && self.family == 'mixtral')",
         "size 8x7b is of family mixtral; 7b, 13b and 70b are of llama2"),
    ))

    family: Literal["llama2", "mixtral"] = "llama2"
    """Family of the architecture; mixtral is a mixture of experts."""
    size: Literal["tiny", "7b", "13b", "70b", "8x7b"] | None = None
    """A published shape of the family (llama2: 7b, 13b, 70b; mixtral: 8x7b); tiny is a few million parameters, for
    trying things out."""
    config: Open | None = None
    """Fields of the Hugging Face model config; laid over the shape of `size`, or complete if there is none."""
    path: Path | None = None
    """Folder in the Hugging Face format to start from: config.json and safetensors weights, read slice by slice.
    Without it weights are random, drawn from `train.seed`."""

    @model_validator(mode="after")
    def _some_shape(self) -> Self:
        if self.size is None and self.config is None and self.path is None:
            raise ValueError("model needs one of size, config or path")
        if self.size not in (None, "tiny") and (self.size == "8x7b") != (self.family == "mixtral"):
            raise ValueError("size 8x7b is of family mixtral; 7b, 13b and 70b are of llama2")
        return self


class DataSource(Model):
    """One source of text."""

    path: Path
    """A file, a folder or a glob pattern, as the pods see it."""
    format: Literal["auto", "text", "jsonl", "parquet", "megatron", "prepared"] = "auto"
    """How to read it. auto goes by the file's ending; prepared is the output of `python -m trainer.prepare`."""
    field: Annotated[str, Field(min_length=1, max_length=253)] = "text"
    """Name of the JSONL key or Parquet column that holds the text."""
    weight: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """Share of the samples drawn from this source, relative to the other sources' weights."""


class DataConfig(Model):
    """What the model is trained on. Documents are packed to `sequenceLength` tokens."""

    sources: Annotated[list[DataSource], Field(min_length=1, max_length=64)]
    """One or more sources, mixed by their weights."""
    tokenizer: Path | None = None
    """Tokenizer: a Hugging Face folder, a tokenizer.json or a SentencePiece .model file. Not needed when every
    source is prepared or megatron."""
    sequence_length: Annotated[int, Field(ge=2, le=1 << 20)] = 4096
    """Tokens a sample; at most the model's max_position_embeddings."""
    document_mask: bool = True
    """Attention stays inside a document where several share a sample. false: it crosses their borders, as LLaMA2's did;
    somewhat faster on short documents."""
    cache: Path | None = None
    """Folder on shared storage for tokenised data; default: `data` under the checkpoint folder."""


class ParallelConfig(Model):
    """How the model is spread over the ranks. What is set is kept, the rest is chosen (docs/planner.md).

    data x shard x tensor x pipeline x context is the number of ranks. Ranks are numbered with tensor innermost, then
    context, shard, data, and pipeline outermost, so that what talks most is nearest."""

    data: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Replicas that each hold the whole sharded model (HSDP)."""
    shard: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Ranks over which parameters, gradients and optimizer state are sharded (FSDP2)."""
    tensor: Annotated[int, Field(ge=1, le=256)] | None = None
    """Ranks that share each matrix, with sequence and loss parallel; divides the key-value heads."""
    pipeline: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Ranks that hold the layers one after the other."""
    context: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Ranks that share each sequence."""
    ulysses: Annotated[int, Field(ge=1, le=256)] | None = None
    """Part of context that exchanges heads for positions (Ulysses); the rest, context / ulysses, passes keys and
    values round a ring."""
    expert: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Ranks that share out the experts of a mixture; divides the experts and shard x context x tensor."""
    zero: Literal[2, 3] | None = None
    """3: parameters are gathered again for the backward pass. 2: kept from forward to backward, more memory."""
    schedule: Literal["1F1B", "Interleaved1F1B", "ZBV"] | None = None
    """Order of the pipeline's work. ZBV has no bubble if forward, backward and weight gradient cost the same; it
    needs zero 2."""
    stage_layers: Annotated[list[Count], Field(min_length=1, max_length=4096)] | None = None
    """Layers of every stage, first to last; several stages a rank for Interleaved1F1B and ZBV (two for ZBV)."""


class ExpertsConfig(Model):
    """How the experts of a mixture are kept from being too busy. Absent: no token is dropped, no expert moved."""

    model_config = ConfigDict(json_schema_extra=rules(
        ("!has(self.moveAbove) || has(self.moveEvery)", "moveAbove needs moveEvery"),
    ))

    capacity_factor: Annotated[float, Field(gt=0, le=1024)] | None = None
    """Tokens that an expert takes at most, as a multiple of its even share (1: all experts exactly full if none is
    dropped). Of those beyond it the ones with the lowest router weight are dropped: they skip the expert. Counted over
    a micro-batch of all ranks; not in evaluation. Left out, none is dropped."""
    move_every: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    """Steps after which it is looked whether the ranks of `parallel.expert` were evenly busy; where they were not,
    experts change places between them, with their optimizer state. What is computed stays the same. Left out, experts
    stay where they are."""
    move_above: Annotated[float, Field(ge=1, le=1024)] | None = None
    """Experts of a layer change places if one of its ranks got this many times the mean's tokens since the last look.
    Default: 1.1."""

    @model_validator(mode="after")
    def _moved_at_some_time(self) -> Self:
        if self.move_above is not None and self.move_every is None:
            raise ValueError("moveAbove needs moveEvery")
        return self


class OptimizerConfig(Model):
    """AdamW with linear warm-up and cosine decay."""

    model_config = ConfigDict(json_schema_extra=rules(
        ("!has(self.minLearningRate) || self.minLearningRate <= (has(self.learningRate) ? self.learningRate : 3e-4)",
         "minLearningRate must not be above learningRate"),
    ))

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    """Peak learning rate, reached after the warm-up."""
    min_learning_rate: Annotated[float, Field(ge=0, le=10)] | None = None
    """Learning rate at the last step. Default: a tenth of learningRate."""
    warmup_steps: Step | None = None
    """Steps of linear warm-up from 0. Default: 2 % of steps, at least 1 and at most 2,000."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Decoupled weight decay a step, times the learning rate; not applied to norms, biases and embeddings."""
    clip_norm: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """Gradients are scaled down to this global L2 norm when theirs is larger."""

    offload: bool = False
    """Keep AdamW's state in the host's memory and update there: 8 bytes a parameter less on the device, slower
    steps. On a CPU it changes nothing."""

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.min_learning_rate is not None and self.min_learning_rate > self.learning_rate:
            raise ValueError("minLearningRate must not be above learningRate")
        return self


class EvaluateConfig(Model):
    """A validation loss during training."""

    every: Annotated[int, Field(ge=1, le=1 << 31)]
    """Steps between two evaluations."""
    steps: Annotated[int, Field(ge=1, le=1 << 20)] = 10
    """Batches an evaluation."""
    data: Annotated[list[DataSource], Field(min_length=1, max_length=64)]
    """Sources held out from training."""


class ProfileConfig(Model):
    """Some steps are recorded: a Chrome trace of every rank (chrome://tracing or Perfetto shows it), and summary.md, a
    page of where their time went: compute, exposed communication, bubble, data, checkpoint."""

    first: Annotated[int, Field(ge=1, le=1 << 40)] = 5
    """The first step to record; those before warm up."""
    steps: Annotated[int, Field(ge=1, le=100)] = 3
    """Steps to record. A trace is some megabytes a step and rank."""
    folder: Path | None = None
    """Where the files go; default: `profile` under the checkpoint folder."""


class SpikeConfig(Model):
    """A loss that shoots up: the run goes back to the weights and moments of an older durable checkpoint, and the
    batches since then are left out. Steps go on counting, as with skipSteps."""

    factor: Annotated[float, Field(gt=1, le=100)] = 2.0
    """A loss that is this many times the median of the last `window` steps is a spike."""
    window: Annotated[int, Field(ge=4, le=256)] = 32
    """Steps looked at; before there are so many nothing is a spike."""
    rewind: Annotated[int, Field(ge=1, le=1 << 31)] = 100
    """Steps that the checkpoint is old at least; checkpoint.keep has to keep it. If there is none, only the batch with
    the spike is left out."""


class TrainConfig(Model):
    """A pretraining or full finetuning run of a causal language model."""

    model_config = ConfigDict(json_schema_extra=rules(
        ("!has(self.batchSize) || self.batchSize % (has(self.microBatchSize) ? self.microBatchSize : 1) == 0",
         "batchSize must be a multiple of microBatchSize"),
        ("!has(self.experts) || (has(self.model.family) && self.model.family == 'mixtral')",
         "experts is for model.family mixtral; leave it out"),
        ("!has(self.twoBatchOverlap) || !self.twoBatchOverlap || !has(self.microBatchSize) || "
         "self.microBatchSize % 2 == 0",
         "microBatchSize must be even with twoBatchOverlap"),
        ("!has(self.twoBatchOverlap) || !self.twoBatchOverlap || !has(self.experts) || "
         "!has(self.experts.capacityFactor)",
         "experts.capacityFactor counts tokens over a whole micro-batch; it cannot be set with twoBatchOverlap"),
    ))

    model: ModelConfig
    """The model."""
    data: DataConfig
    """The training data."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    """The layout over the ranks; empty means that Trainyard chooses."""
    experts: ExpertsConfig | None = None
    """For a mixture of experts."""
    autotune: bool = False
    """Measure the few layouts that are estimated to be the fastest, a few steps each, at the first start of the job,
    and train on the fastest. Only where parallel, microBatchSize or activationCheckpointing leave something to choose
    (docs/planner.md)."""
    steps: Annotated[int, Field(ge=1, le=1 << 40)]
    """Optimizer steps until the job has succeeded."""
    batch_size: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    """Samples an optimizer step, over all ranks; a multiple of data x shard x microBatchSize, and enough for every
    stage of a pipeline to have work. Default: microBatchSize (1) times the ranks, twice that for ZBV."""
    micro_batch_size: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    """Samples that a rank, or a group that shares samples (tensor, context), computes at a time; gradients are
    accumulated until batchSize is reached. Left out, it is chosen with the layout."""
    two_batch_overlap: bool = False
    """Compute a micro-batch in two halves, by turns: while one half's collectives are on their way the other computes
    (also known as multi-copy). Results are the same. For tensor, context or expert parallelism, with an even
    microBatchSize, without schedule ZBV, experts.capacityFactor and dropout. It is worth it where the host queues work
    on a device and what blocks communicate is not small against what they compute."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """The optimizer and its schedule."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type of computation. auto: bf16 on devices that have it, fp32 on a CPU, and on Ascend 910A fp16 with fp32
    master weights and a dynamic loss scale."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again to save memory. full: all of a block but its input, about a third more
    computation. selective: norms, activations and other cheap operators; products of matrices, attention and what
    crosses the network are kept. Left out, it is chosen with the layout: as little as makes it fit."""
    compile: bool = False
    """Compile the model block by block with torch.compile: the first step takes minutes more. For dense models without
    tensor or context parallelism and without selective checkpointing; on a CPU the image needs a C++ compiler. Where
    it cannot be done a warning says so and training goes on without."""
    evaluate: EvaluateConfig | None = None
    """Validation during training; absent means none."""
    profile: ProfileConfig | None = None
    """Record where the time of some steps goes; absent means none."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Decides initial weights, the order of the data and dropout."""
    log_every: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    """Steps between two log lines."""
    spike: SpikeConfig | None = None
    """What is done when the loss shoots up; absent: nothing."""
    skip_steps: Annotated[list[Annotated[int, Field(ge=1, le=1 << 40)]], Field(max_length=1024)] = Field(
        default_factory=list)
    """Steps whose batch is left out: they count, but nothing is computed and the model is not updated. A batch whose
    loss or gradients are not finite twice is left out in the same way."""
    export: bool = True
    """At the end, write a Hugging Face folder named `export` under the checkpoint folder."""

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError("batchSize must be a multiple of microBatchSize")
        return self

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.two_batch_overlap and "micro_batch_size" in self.model_fields_set and self.micro_batch_size % 2:
            raise ValueError("microBatchSize must be even with twoBatchOverlap")
        if self.two_batch_overlap and self.experts is not None and self.experts.capacity_factor is not None:
            raise ValueError("experts.capacityFactor counts tokens over a whole micro-batch; it cannot be set with "
                             "twoBatchOverlap")
        return self

    @model_validator(mode="after")
    def _experts_of_a_mixture(self) -> Self:
        if self.experts is not None and self.model.family != "mixtral":
            raise ValueError("experts is for model.family mixtral; leave it out")
        return self
