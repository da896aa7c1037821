#!/usr/bin/env bash
# Train, quantize and measure MiniCPM-nano with this package's own verbs:
#
#     PYTHON=.venv/bin/python nano/train.sh CORPUS WORK
#
# CORPUS holds pretrain.jsonl.gz and sft.jsonl.gz (sources.json says what is in them). All comes under WORK, the shipped
# folder as WORK/MiniCPM-nano; two CPU cores need about two hours. Stopped anywhere, the same command goes on.
set -euo pipefail
corpus=$1 work=$2
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
natural=$work/corpus
generated=$work/grammar

once() { # once RESULT COMMAND...: what is there is not made again
  [ -e "$1" ] || "${@:2}"
}

train() { # train RUN pretrain|finetune OPTIONS...
  local run=$1 verb=$2 resume=()
  shift 2
  [ ! -e "$run/final" ] || return 0
  [ ! -e "$run/run.json" ] || resume=(--resume)
  "$python" -m minicpm "$verb" --out "$run" --threads 2 --optimizer muon "${resume[@]}" "$@"
}

once "$natural" "$python" "$here/corpus.py" "$corpus" "$natural"
once "$generated" "$python" "$here/grammar.py" "$generated" --seed 0
once "$work/grammar-more" "$python" "$here/grammar.py" "$work/grammar-more" --seed 1
once "$work/tokenizer" "$python" "$here/make_tokenizer.py" "$natural" "$work/tokenizer"

n=$natural g=$generated
# 1. Stable rate: the collected corpus, every token learned.
train "$work/stable" pretrain --shape "$here/config.json" --tokenizer "$work/tokenizer" --train-on all \
  --data "$n"/stories.jsonl.gz:30% "$n"/books.jsonl.gz:6% "$n"/dialogues.jsonl.gz:3% "$n"/wordnet.jsonl.gz:3% \
  "$n"/chat_stories.jsonl.gz:18% "$n"/chat_story_questions.jsonl.gz:12% "$n"/chat_fairytale_questions.jsonl.gz:2% \
  "$n"/chat_arithmetic.jsonl.gz:7% "$n"/chat_countries.jsonl.gz:5% "$n"/chat_words.jsonl.gz:4% \
  "$n"/chat_wordnet.jsonl.gz:2% "$n"/chat_turns.jsonl.gz:5% "$n"/chat_small.jsonl.gz:3% \
  --eval "$n"/held-out/chat_{stories,words,countries}.jsonl.gz "$n"/held-out/stories.jsonl.gz \
  --length 256 --rows 16 --micro-rows 16 --lr 0.01 --warmup-steps 150 --steps 800 --save-every 200 --eval-every 400

# 2. Stable rate: mostly generated text.
train "$work/stable2" pretrain --branch-from "$work/stable" --train-on all \
  --data "$g"/stories.jsonl.gz:15% "$g"/chat_stories.jsonl.gz:22% "$g"/chat_story_questions.jsonl.gz:13% \
  "$g"/chat_copy.jsonl.gz:8% "$g"/chat_arithmetic.jsonl.gz:10% "$g"/chat_countries.jsonl.gz:6% \
  "$g"/chat_words.jsonl.gz:6% "$g"/chat_small.jsonl.gz:6% "$g"/chat_unknown.jsonl.gz:2% "$g"/chat_turns.jsonl.gz:6% \
  "$n"/books.jsonl.gz:3% "$n"/wordnet.jsonl.gz:2% "$n"/dialogues.jsonl.gz:1% \
  --eval "$g"/held-out/chat_{stories,words,countries,arithmetic,small}.jsonl.gz \
  --length 256 --rows 16 --micro-rows 16 --lr 0.01 --warmup-steps 150 --steps 1000 --save-every 200 --eval-every 400

# 3. Decay: conversations, only the answers learned.
train "$work/decay" pretrain --branch-from "$work/stable2" --train-on assistant --dtype float32 \
  --data "$g"/stories.jsonl.gz:4% "$g"/chat_stories.jsonl.gz:27% "$g"/chat_story_questions.jsonl.gz:12% \
  "$g"/chat_copy.jsonl.gz:9% "$g"/chat_arithmetic.jsonl.gz:12% "$g"/chat_countries.jsonl.gz:8% \
  "$g"/chat_words.jsonl.gz:8% "$g"/chat_small.jsonl.gz:10% "$g"/chat_unknown.jsonl.gz:2% "$g"/chat_turns.jsonl.gz:8% \
  --eval "$g"/held-out/chat_{stories,words,countries,arithmetic,small}.jsonl.gz \
  --length 512 --rows 8 --micro-rows 8 --lr 0.01 --steps 750 --decay-steps 750 --save-every 150 --eval-every 250

# 4. Fine-tuning on the whole context, with conversations as long as it.
train "$work/sft" finetune -m "$work/decay/final" --dtype float32 \
  --data "$g"/chat_long.jsonl.gz:30% "$g"/chat_stories.jsonl.gz:20% "$g"/chat_story_questions.jsonl.gz:9% \
  "$g"/chat_copy.jsonl.gz:7% "$g"/chat_arithmetic.jsonl.gz:10% "$g"/chat_countries.jsonl.gz:6% \
  "$g"/chat_words.jsonl.gz:6% "$g"/chat_small.jsonl.gz:8% "$g"/chat_unknown.jsonl.gz:1% "$g"/chat_turns.jsonl.gz:3% \
  --length 2048 --rows 4 --micro-rows 2 --lr 0.0005 --warmup-steps 5 --steps 60 --decay-steps 60 --save-every 60

# 5. Fine-tuning on fresh wordings, most of what has one right answer.
m=$work/grammar-more
train "$work/polish" finetune -m "$work/sft/final" --dtype float32 \
  --data "$m"/chat_small.jsonl.gz:24% "$m"/chat_copy.jsonl.gz:13% "$m"/chat_story_questions.jsonl.gz:14% \
  "$m"/chat_arithmetic.jsonl.gz:12% "$m"/chat_words.jsonl.gz:10% "$m"/chat_countries.jsonl.gz:5% \
  "$m"/chat_stories.jsonl.gz:14% "$m"/chat_turns.jsonl.gz:5% "$m"/chat_unknown.jsonl.gz:1% "$m"/chat_long.jsonl.gz:2% \
  --length 512 --rows 8 --micro-rows 8 --lr 0.002 --warmup-steps 10 --steps 150 --decay-steps 140 --save-every 150

# 6. Quantize, measure, write the card, and put the folder together that ships. What the corpus's own conversations
# ask, the last phases no longer teach; its books and dialogues are measured as texts.
measure() { # measure FOLDER REPORT OPTIONS...
  once "$2" "$python" "$here/measure.py" "$1" --held-out "$g/held-out" "$n/held-out" \
    --without 'corpus/chat_*' corpus/stories grammar/chat_long --threads 2 --json "$2" "${@:3}"
}
dense=$work/polish/final
measure "$dense" "$work/dense.json"
for preset in int4 int8; do
  once "$work/$preset" "$python" -m minicpm quantize "$dense" "$work/$preset" --preset $preset
  measure "$work/$preset" "$work/$preset.json" --reference "$dense"
done
"$python" "$here/card.py" "$work/dense.json" --quantized "$work"/int[48].json \
  --runs "$work"/{stable,stable2,decay,sft,polish} --out "$work/README.md"

# The folder that ships is src/minicpm/assets/MiniCPM-nano; int4 was chosen by the card's comparison.
rm -rf "$work/MiniCPM-nano"
cp -r "$work/int4" "$work/MiniCPM-nano"
cp "$here/generation_config.json" "$work/README.md" "$work/MiniCPM-nano"
