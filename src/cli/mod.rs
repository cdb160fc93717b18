//! (under construction)
#![forbid(unsafe_code)]

/// Runs the command line.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
