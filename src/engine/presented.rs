//! What the machines said of themselves when they asked for their scripts, by boot: for the answer files that such a
//! boot asks for later, maybe on another core.
//!
//! A fixed, direct-mapped table of pointers that are swapped whole: no lock, and bounded whatever a LAN sends. Boot
//! numbers are counted up, so a boot keeps its place until as many others have come after it. What has gone, also by
//! a restart, is no loss: then only the token's MAC address is known.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::jobs::Identity;
use crate::jobs::token::BootId;

/// Boots remembered: of those only whose image has answer files.
const PLACES: usize = 1 << 14;

/// The table.
#[derive(Debug)]
pub struct Presented {
    places: Box<[ArcSwapOption<(BootId, Identity)>]>,
}

impl Default for Presented {
    fn default() -> Self {
        Self::new()
    }
}

impl Presented {
    /// An empty table.
    pub fn new() -> Self {
        Self { places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect() }
    }

    fn place(&self, boot: BootId) -> &ArcSwapOption<(BootId, Identity)> {
        &self.places[boot.0 as usize % PLACES]
    }

    /// Remembers who began a boot.
    pub fn record(&self, boot: BootId, who: &Identity) {
        self.place(boot).store(Some(Arc::new((boot, who.clone()))));
    }

    /// Who began a boot, if that is remembered.
    pub fn of(&self, boot: BootId) -> Option<Identity> {
        let place = self.place(boot).load();
        place.as_ref().filter(|entry| entry.0 == boot).map(|entry| entry.1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_known_until_its_place_is_taken() {
        let table = Presented::new();
        let who = |n| Identity { serial: Some(format!("S{n}")), ..Identity::default() };
        table.record(BootId(7), &who(7));
        assert_eq!(table.of(BootId(7)), Some(who(7)));
        assert_eq!(table.of(BootId(8)), None);
        table.record(BootId(7 + PLACES as u64), &who(8));
        assert_eq!(table.of(BootId(7)), None, "another boot's words are never taken for its own");
    }
}
