//! Whether every core goes round its loop.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{Engine, Shared};
use crate::telemetry::Counters;

/// A core that has not been around its loop for so long hangs; one that is well goes round every few seconds.
const HANGS: Duration = Duration::from_secs(15);

/// Whether every core goes round its loop, for the service manager and for `/readyz`.
pub(super) struct Pulse {
    cells: Vec<Arc<Counters>>,
    beats: Mutex<Vec<Beat>>,
}

/// A core's last turn that was seen.
#[derive(Clone, Copy)]
struct Beat {
    turns: u64,
    at: Instant,
    /// How many there were when the service manager was told last.
    told: u64,
}

impl Pulse {
    pub(super) fn new(cells: Vec<Arc<Counters>>, now: Instant) -> Self {
        let beats = vec![Beat { turns: 0, at: now, told: 0 }; cells.len()];
        Self { cells, beats: Mutex::new(beats) }
    }

    fn feel<T>(&self, now: Instant, then: impl FnOnce(&mut [Beat]) -> T) -> T {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        for (beat, turns) in beats.iter_mut().zip(Engine::turns(&self.cells)) {
            if turns != beat.turns {
                (beat.turns, beat.at) = (turns, now);
            }
        }
        then(&mut beats)
    }

    /// True once after every core has been around its loop.
    pub(super) fn is_whole(&self, now: Instant) -> bool {
        self.feel(now, |beats| {
            let whole = beats.iter().all(|beat| beat.turns > beat.told);
            if whole {
                beats.iter_mut().for_each(|beat| beat.told = beat.turns);
            }
            whole
        })
    }

    /// A core that hangs.
    fn hanging(&self, now: Instant) -> Option<usize> {
        self.feel(now, |beats| beats.iter().position(|beat| now.duration_since(beat.at) >= HANGS))
    }
}

/// Why not every listener answers, for `/readyz`.
pub(super) fn look_at_cores(shared: &Shared, pulse: &Pulse) -> Result<(), String> {
    if shared.stopping().is_some() {
        return Err("the server stops".to_owned());
    }
    match shared.cores_ended() {
        0 => {}
        ended => {
            let all = pulse.cells.len();
            return Err(format!("{ended} of {all} cores ended by a fault: look at the log, and restart"));
        }
    }
    match pulse.hanging(Instant::now()) {
        None => Ok(()),
        Some(core) => Err(format!(
            "core {core} has not been around its loop for {} s: what comes to it is not answered",
            HANGS.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_does_not_go_round_is_named_and_the_service_manager_not_told() {
        let cells: Vec<_> = (0..2).map(|_| Arc::new(Counters::new(1))).collect();
        let start = Instant::now();
        let pulse = Pulse::new(cells.clone(), start);
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!pulse.is_whole(start), "nobody has been around yet");
        cells.iter().for_each(|cell| cell.add(0, 1));
        assert!(pulse.is_whole(after(2)) && !pulse.is_whole(after(4)));
        cells[0].add(0, 1);
        assert!(!pulse.is_whole(after(10)) && pulse.hanging(after(10)).is_none());
        assert_eq!(pulse.hanging(after(17)), Some(1));
        cells[1].add(0, 1);
        assert!(pulse.hanging(after(20)).is_none() && pulse.is_whole(after(20)));
    }
}
