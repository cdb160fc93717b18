//! `demo`: under construction until the firmware machines are here.

use super::args::Demo;
use super::{Done, Exit, Failure};

pub(super) fn run(demo: &Demo) -> Done {
    let _ = (&demo.size, demo.json, demo.stay, demo.driver);
    Err(Failure::new(Exit::Runtime, "not wired yet"))
}
