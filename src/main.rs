//! The program: parse, run, exit.

fn main() -> std::process::ExitCode {
    bigbrother::cli::main()
}
