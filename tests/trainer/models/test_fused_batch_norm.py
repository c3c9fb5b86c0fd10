import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.models.layers import FusedBatchNormalization

EPSILON = 1e-3
SHAPE = (12, 5, 4, 3)


def activations(shape=SHAPE, seed=0) -> np.ndarray:
    drawn = np.random.default_rng(seed)
    return (drawn.normal(size=shape) * [2.0, 0.5, 7.0] + [1.0, -3.0, 0.2]).astype(np.float32)


def layer(group=0, **options) -> FusedBatchNormalization:
    """One whose scale and offset are not 1 and 0."""
    made = FusedBatchNormalization(momentum=0.9, epsilon=EPSILON, group=group, **options)
    made.build(SHAPE)
    made.scale.assign([1.5, -0.5, 2.0])
    made.offset.assign([0.1, 0.2, -0.3])
    return made


def by_hand(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    normal = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + EPSILON)
    return normal * [1.5, -0.5, 2.0] + [0.1, 0.2, -0.3]


def gradients(made: keras.layers.Layer, x: np.ndarray, upstream: np.ndarray) -> list[np.ndarray]:
    """Of sum(upstream · output), by input, scale and offset."""
    x = tf.constant(x)
    variables = [variable.value for variable in made.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(made(x, training=True) * upstream)
    return [each.numpy() for each in tape.gradient(loss, [x, *variables])]


def test_training_normalises_by_the_batch():
    np.testing.assert_allclose(layer()(activations(), training=True), by_hand(activations()), rtol=1e-4, atol=1e-4)


def test_moving_statistics_take_the_mean_and_the_unbiased_variance():
    made = layer()
    mean, variance = np.zeros(3), np.ones(3)
    for seed in range(3):
        x = activations(seed=seed)
        made(x, training=True)
        mean = 0.9 * mean + 0.1 * x.mean((0, 1, 2), dtype=np.float64)
        variance = 0.9 * variance + 0.1 * x.var((0, 1, 2), ddof=1, dtype=np.float64)
    np.testing.assert_allclose(made.moving_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(made.moving_variance.numpy(), variance, rtol=1e-5)


def test_inference_uses_the_moving_statistics_and_leaves_them():
    made = layer()
    made.moving_mean.assign([1.0, 2.0, 3.0])
    made.moving_variance.assign([4.0, 0.25, 9.0])
    x = activations()
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 0.25, 9]) + EPSILON) * [1.5, -0.5, 2.0] + [0.1, 0.2, -0.3]
    np.testing.assert_allclose(made(x, training=False), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made(x), expected, rtol=1e-4, atol=1e-4)
    assert made.moving_mean.numpy().tolist() == [1.0, 2.0, 3.0]
    assert made.moving_variance.numpy().tolist() == [4.0, 0.25, 9.0]


def keras_layer() -> keras.layers.BatchNormalization:
    made = keras.layers.BatchNormalization(momentum=0.9, epsilon=EPSILON)
    made.build(SHAPE)
    made.gamma.assign([1.5, -0.5, 2.0])
    made.beta.assign([0.1, 0.2, -0.3])
    return made


def test_output_and_gradients_are_those_of_keras():
    x, upstream = activations(), activations(seed=9)
    ours, theirs = layer(), keras_layer()
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), rtol=1e-4, atol=1e-4)
    for mine, other in zip(gradients(ours, x, upstream), gradients(theirs, x, upstream), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(ours.moving_mean.numpy(), theirs.moving_mean.numpy(), rtol=1e-5)


def test_gradients_are_the_differences_of_the_loss():
    x, upstream = activations(), activations(seed=9).astype(np.float64)
    by_input, by_scale, by_offset = gradients(layer(), x, upstream.astype(np.float32))
    for place in [(0, 0, 0, 0), (3, 2, 1, 1), (11, 4, 3, 2)]:
        nudge = np.zeros(SHAPE)
        nudge[place] = 1e-4
        slope = ((by_hand(x + nudge) - by_hand(x - nudge)) * upstream).sum() / 2e-4
        assert by_input[place] == pytest.approx(slope, rel=1e-2, abs=1e-3)
    normal = (by_hand(x) - [0.1, 0.2, -0.3]) / [1.5, -0.5, 2.0]
    np.testing.assert_allclose(by_scale, (upstream * normal).sum((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(by_offset, upstream.sum((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 12])
def test_groups_are_what_each_would_be_alone(group):
    x, upstream = activations(), activations(seed=9)
    parts, one_by_one = range(0, len(x), group), layer(group=0)
    grouped = layer(group=group)
    alone = [by_hand(x[first : first + group]) for first in parts]
    np.testing.assert_allclose(grouped(x, training=True), np.concatenate(alone), rtol=1e-3, atol=1e-3)
    means = [x[first : first + group].mean((0, 1, 2)) for first in parts]
    variances = [x[first : first + group].var((0, 1, 2), ddof=1) for first in parts]
    np.testing.assert_allclose(grouped.moving_mean.numpy(), 0.1 * np.mean(means, axis=0), rtol=1e-4)
    np.testing.assert_allclose(grouped.moving_variance.numpy(), 0.9 + 0.1 * np.mean(variances, axis=0), rtol=1e-4)

    by_input, *by_weights = gradients(grouped, x, upstream)
    slices = [gradients(one_by_one, x[first : first + group], upstream[first : first + group]) for first in parts]
    np.testing.assert_allclose(by_input, np.concatenate([each[0] for each in slices]), rtol=1e-4, atol=1e-4)
    for found, summed in zip(by_weights, np.sum([each[1:] for each in slices], axis=0), strict=True):
        np.testing.assert_allclose(found, summed, rtol=1e-4, atol=1e-3)


def test_replicas_of_any_number_with_the_same_groups_give_the_same():
    x = activations()
    whole = layer(group=3)(x, training=True).numpy()
    halves = [layer(group=3)(half, training=True).numpy() for half in (x[:6], x[6:])]
    np.testing.assert_array_equal(whole, np.concatenate(halves))


@pytest.mark.parametrize("group", [5, 7, 13, 24])
def test_a_group_that_does_not_divide_the_batch_is_refused(group):
    with pytest.raises(ValueError, match=f"a group of {group} must divide the batch, which has 12"):
        layer(group=group)(activations(), training=True)


def test_a_batch_of_unknown_size_is_refused_with_groups_and_taken_without():
    signature = [tf.TensorSpec([None, 5, 4, 3], tf.float32)]
    grouped, whole = layer(group=3), layer()
    with pytest.raises(ValueError, match="group of 3"):
        tf.function(lambda x: grouped(x, training=True), input_signature=signature)(activations())
    free = tf.function(lambda x: whole(x, training=True), input_signature=signature)
    np.testing.assert_allclose(free(activations()), by_hand(activations()), rtol=1e-4, atol=1e-4)
    assert tf.function(lambda x: grouped(x), input_signature=signature)(activations()).shape == SHAPE


@pytest.mark.parametrize("group", [0, 4])
def test_bfloat16_goes_in_and_out_and_everything_else_stays_float32(group):
    made = layer(group=group, dtype="mixed_bfloat16")
    assert {variable.dtype for variable in made.variables} == {"float32"}
    x = tf.cast(activations(), tf.bfloat16)
    seen = tf.cast(x, tf.float32).numpy()
    for training in (True, False):
        assert made(x, training=training).dtype == tf.bfloat16
    made = layer(group=group, dtype="mixed_bfloat16")
    made(x, training=True)
    exact = layer(group=group)
    exact(seen, training=True)
    # Had the statistics been bfloat16, with its 8 bits, they would differ by up to 4e-3.
    np.testing.assert_allclose(made.moving_mean.numpy(), exact.moving_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(made.moving_variance.numpy(), exact.moving_variance.numpy(), rtol=1e-5)


def test_variables_are_named_and_split_into_trained_and_moved():
    made = layer()
    assert [variable.name for variable in made.trainable_variables] == ["scale", "offset"]
    assert [variable.name for variable in made.non_trainable_variables] == ["moving_mean", "moving_variance"]
    assert {tuple(variable.shape) for variable in made.variables} == {(3,)}


def test_a_new_layer_does_nothing_but_normalise():
    made = FusedBatchNormalization()
    made.build(SHAPE)
    values = {variable.name: variable.numpy().tolist() for variable in made.variables}
    assert values == {"scale": [1.0] * 3, "offset": [0.0] * 3, "moving_mean": [0.0] * 3, "moving_variance": [1.0] * 3}


def test_config_round_trip(tmp_path):
    made = FusedBatchNormalization(0.75, 0.01, 8, name="norm", dtype="mixed_bfloat16")
    again = FusedBatchNormalization.from_config(made.get_config())
    assert (again.momentum, again.epsilon, again.group, again.name) == (0.75, 0.01, 8, "norm")
    assert again.dtype_policy.name == "mixed_bfloat16"
    model = keras.Sequential([keras.Input((5, 4, 3)), FusedBatchNormalization(0.5)])
    model.layers[0].moving_mean.assign([1.0, 2.0, 3.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(activations(), verbose=0), model.predict(activations(), verbose=0))


def frozen() -> FusedBatchNormalization:
    made = layer()
    made.moving_mean.assign([1.0, 2.0, 3.0])
    made.moving_variance.assign([4.0, 0.25, 9.0])
    made.trainable = False
    return made


def test_a_frozen_layer_uses_its_moving_statistics_in_training_too_and_leaves_them():
    made, theirs = frozen(), keras_layer()
    theirs.moving_mean.assign([1.0, 2.0, 3.0])
    theirs.moving_variance.assign([4.0, 0.25, 9.0])
    theirs.trainable = False
    x = activations()
    np.testing.assert_allclose(made(x, training=True), theirs(x, training=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(made(x, training=True), made(x, training=False))
    assert made.moving_mean.numpy().tolist() == [1.0, 2.0, 3.0]
    assert made.moving_variance.numpy().tolist() == [4.0, 0.25, 9.0]
    assert made.trainable_variables == []
    made.trainable = True
    np.testing.assert_allclose(made(x, training=True), by_hand(x), rtol=1e-4, atol=1e-4)


def test_gradients_go_through_a_frozen_layer():
    x, upstream = activations(), activations(seed=9)
    (by_input,) = gradients(frozen(), x, upstream)
    slope = np.array([1.5, -0.5, 2.0]) / np.sqrt(np.array([4, 0.25, 9]) + EPSILON)
    np.testing.assert_allclose(by_input, upstream * slope, rtol=1e-4)


@pytest.mark.parametrize("group", [0, 4])
def test_channels_first_is_the_same_turned(group: int):
    x, upstream = activations(), activations(seed=9)
    last, first = layer(group), FusedBatchNormalization(0.9, EPSILON, group, "channels_first")
    first.build((12, 3, 5, 4))
    first.set_weights(last.get_weights())
    turned = (0, 3, 1, 2)
    for training in (True, False):
        out = first(x.transpose(turned), training=training)
        np.testing.assert_allclose(out, last(x, training=training).numpy().transpose(turned), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first.moving_mean.numpy(), last.moving_mean.numpy(), rtol=1e-6)
    found = gradients(first, x.transpose(turned), upstream.transpose(turned))
    for ours, expected in zip(found, gradients(last, x, upstream), strict=True):
        np.testing.assert_allclose(ours, expected.transpose(turned) if expected.ndim == 4 else expected, atol=2e-3)
