#include "video/judge.h"

#include <doctest/doctest.h>

#include <set>

#include "slidetile/error.h"
#include "video/train.h"

using namespace slidetile;
using namespace slidetile::video;

TEST_CASE("the held-out sentences: 200 different ones of one object, which training never shows") {
  const std::vector<std::string> sentences = read_sentences(SLIDETILE_DATA "/held_out_captions.txt");
  CHECK(std::set<std::string>(sentences.begin(), sentences.end()).size() == 200);
  std::set<Motion> motions;
  for (const std::string& sentence : sentences) {
    const Scene scene = scene_from_sentence(sentence);
    REQUIRE(scene.sprites.size() == 1);
    CHECK(is_held_out(scene.sprites[0]));
    motions.insert(scene.sprites[0].motion);
  }
  CHECK(motions.size() == kMotions);
  CHECK_THROWS_AS(read_sentences("/none"), Error);
}

TEST_CASE("the checker reads the source's own clips of these sentences, and shares count them") {
  Judgement judgement;
  for (const std::string& sentence : read_sentences(SLIDETILE_DATA "/held_out_captions.txt")) {
    const Scene scene = scene_from_sentence(sentence);
    const Clip clip = render(scene, {16, 64, 64}, judgement.verdicts.size());
    judgement.verdicts.push_back({sentence, score(clip, scene), read_clip(clip, 1)});
  }
  CHECK(judgement.shares().all >= 0.98);
  CHECK(judgement.shares().colour >= 0.99);
  int counted = 0, right = 0;
  const auto motions = judgement.motions();
  for (size_t asked = 0; asked < motions.size(); ++asked) {
    for (size_t seen = 0; seen < motions[asked].size(); ++seen) counted += motions[asked][seen];
    right += motions[asked][asked];
  }
  CHECK(counted == 200);
  CHECK(right >= 196);
}

TEST_CASE("mistakes are named before a model is read") {
  if (why_no_training() != nullptr) return;
  JudgeRequest request;
  request.model = "/none";
  request.sentences = {"a purple star"};
  CHECK_THROWS_WITH_AS(judge(request), doctest::Contains("purple"), Error);
  request.sentences = {"a small red star spins"};
  request.batch = 0;
  CHECK_THROWS_WITH_AS(judge(request), "judge: a batch of 0, expected 1 or more", Error);
  request.batch = 1;
  CHECK_THROWS_AS(judge(request), Error);
}
