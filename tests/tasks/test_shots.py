import re

import pytest

from nova_jax.tasks import split_shots
from nova_jax.tasks.shots import split_sentences

SCENES = ["A fox wakes up.", "It crosses a river!", "Where does it go?", "Night falls."]
LOOK = "4k, 3.5 mm lens, soft light."


def sentences(count):
    return [f"Scene {i} of the film." for i in range(count)]


def test_one_sentence_more_than_shots_is_the_look_of_every_shot():
    for count in range(2, 21):
        scenes = sentences(count)
        prompts, look = split_shots(" ".join([*scenes, LOOK]), count)
        assert look == LOOK
        assert prompts == tuple(f"{scene} {LOOK}" for scene in scenes)


def test_as_many_sentences_as_shots_are_one_each_without_a_look():
    assert split_shots(" ".join(SCENES), 4) == (tuple(SCENES), "")


def test_more_sentences_are_dealt_evenly_and_in_order():
    assert split_shots(" ".join(sentences(7)), 3).prompts == (
        "Scene 0 of the film. Scene 1 of the film.",
        "Scene 2 of the film. Scene 3 of the film.",
        "Scene 4 of the film. Scene 5 of the film. Scene 6 of the film.",
    )


def test_fewer_sentences_are_shared_by_neighbours():
    assert split_shots("One. Two.", 5) == (("One.", "One.", "One.", "Two.", "Two."), "")
    assert split_shots("no full stop", 2) == (("no full stop", "no full stop"), "")


def test_no_word_is_lost_and_lengths_differ_by_one_sentence_at_most():
    for count in range(1, 21):
        for number in [1, 2, 3, 5, 8, 19, 20, 21, 22, 40, 57]:
            scenes = sentences(number)
            prompts, look = split_shots("\n".join(scenes), count)
            assert len(prompts) == count
            assert bool(look) == (number == count + 1)
            shown = [re.findall(r"Scene (\d+)", prompt.removesuffix(look) if look else prompt) for prompt in prompts]
            flat = [int(n) for numbers in shown for n in numbers]
            assert flat == sorted(flat), "in order"
            assert set(flat) | ({number - 1} if look else set()) == set(range(number))
            assert max(map(len, shown)) - min(map(len, shown)) <= 1
            assert min(map(len, shown)) >= 1


def test_sentences_end_where_people_end_them():
    assert split_sentences('He said "Stop!" Mr. Fox ran 3.5 km, e.g. home... Then it rained.\n') == [
        'He said "Stop!"',
        "Mr. Fox ran 3.5 km, e.g. home...",
        "Then it rained.",
    ]
    assert split_sentences("a red square. a blue circle") == ["a red square.", "a blue circle"]
    assert split_sentences("A title\n\nA line that\nis wrapped.") == ["A title", "A line that is wrapped."]
    assert split_sentences(" \n\n ") == []
    assert split_sentences("(It is late.) Go. ?!") == ["(It is late.)", "Go.", "?!"]


def test_nothing_to_split_is_refused():
    with pytest.raises(ValueError, match="0 sentences for 2 shots"):
        split_shots(" ", 2)
    with pytest.raises(ValueError, match="1 sentences for 0 shots"):
        split_shots("a", 0)
