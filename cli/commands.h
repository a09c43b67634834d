// The commands of the program: each adds itself to the parser, in a file of its own.
#pragma once

namespace CLI {
class App;
}

void add_attend_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_judge_command(CLI::App& app);
void add_kernels_command(CLI::App& app);
void add_plan_command(CLI::App& app);
void add_train_command(CLI::App& app);
