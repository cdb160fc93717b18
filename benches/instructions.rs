//! How many instructions the parts on a packet's path take: `cargo bench --bench instructions`.
//!
//! Unlike times, instructions are the same on a busy machine, to a few in a thousand. Valgrind's callgrind counts them: each part is run
//! so often and three times as often, and what lies between the two is the part's own. Without valgrind (Debian's package of that
//! name) that is said and nothing is counted.
#![allow(clippy::print_stdout, reason = "its output")]

mod work;

use std::process::{Command, ExitCode};

/// Set for the process that is counted: the part's name and how often it is to be done.
const PART: &str = "BOOTSTORM_PART";
const TIMES: u64 = 1000;

fn main() -> ExitCode {
    if let Ok(order) = std::env::var(PART) {
        let (name, times) = order.split_once('=').expect("a name and a number");
        let (_, mut work) = work::all().into_iter().find(|(part, _)| *part == name).expect("a known part");
        let times: u64 = times.parse().expect("a number");
        (0..times).for_each(|_| work());
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!(
            "instructions are not counted: valgrind is missing (apt-get install --no-install-recommends valgrind)"
        );
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    for (name, _) in work::all() {
        if !name.contains(&filter) {
            continue;
        }
        match (counted(name, TIMES), counted(name, 3 * TIMES)) {
            (Ok(few), Ok(many)) => {
                println!("{name:<36}{:>8} instructions", many.saturating_sub(few) / (2 * TIMES));
            }
            (Err(why), _) | (_, Err(why)) => {
                println!("{name}: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Instructions of a whole process that does a part so often.
fn counted(name: &str, times: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .env(PART, format!("{name}={times}"))
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // `==123== Collected : 4567890`
    let found = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    found
        .filter(|_| output.status.success())
        .ok_or_else(|| format!("no count in what valgrind said:\n{said}"))
}
