//! What an operator should know: what the machine noticed, and pools that run out.

use std::sync::Arc;
use std::time::Duration;

use super::DhcpSide;
use crate::engine::core::Turn;
use crate::engine::counters::Count;
use crate::proto::dhcp::{DropReason, Interface, Notice, Rival};

/// Log lines about what was noticed: a burst, then one in so many seconds. Strangers can make notices.
pub(super) const NOTICED_BURST: f64 = 16.0;
pub(super) const NOTICED_PER_SECOND: f64 = 1.0 / 60.0;
/// How often pools are looked at.
const POOLS_EVERY: Duration = Duration::from_secs(1);

impl DhcpSide {
    /// What an operator should know: pools that run out, and what the machine noticed.
    pub(super) fn look_around(&mut self, turn: &mut Turn<'_>) {
        for notice in self.server.notices() {
            if let Some(count) = count_of(&notice) {
                turn.tally.add(count, 1);
            }
            let loud = self.noticed.take(turn.now);
            tell(&notice, &self.interfaces, loud);
        }
        if turn.now < self.pools_at {
            return;
        }
        self.pools_at = turn.now + POOLS_EVERY;
        for ring in self.raws.iter().flat_map(|raw| &raw.rings).flatten() {
            let dropped = ring.overruns();
            turn.tally.drop_dhcp_many(DropReason::QueueFull, dropped);
        }
        let (mut addresses, mut taken) = (0, 0);
        for pool in self.server.pools() {
            addresses += u64::from(pool.len);
            taken += u64::from(pool.live);
            let known = self.low.iter().position(|network| *network == pool.network);
            // Said once, and again only after it was better.
            match known {
                None if u64::from(pool.live) * 10 >= u64::from(pool.len) * 9 => {
                    self.low.push(pool.network);
                    tracing::warn!(
                        network = %pool.network,
                        taken = pool.live,
                        of = pool.len,
                        "the pool is nearly empty: widen its range, or shorten [[dhcp.subnet]] lease"
                    );
                }
                Some(known) if u64::from(pool.live) * 10 < u64::from(pool.len) * 8 => {
                    self.low.swap_remove(known);
                    tracing::info!(network = %pool.network, taken = pool.live, of = pool.len, "the pool has room again");
                }
                _ => {}
            }
        }
        turn.tally.set(Count::DhcpPoolAddresses, addresses);
        turn.tally.set(Count::DhcpPoolTaken, taken);
        turn.tally.set(Count::DhcpPoolsLow, self.low.len() as u64);
    }
}

fn count_of(notice: &Notice) -> Option<Count> {
    Some(match notice {
        Notice::OtherServer { .. } => Count::DhcpOtherServers,
        Notice::Restarting { .. } => Count::DhcpRestarting,
        Notice::InUse { .. } => Count::DhcpInUse,
        // Each such answer is counted when it is heard.
        Notice::Disbelieved { .. } => return None,
        Notice::LateFirst { .. } => Count::DhcpLateFirst,
        Notice::NextLoader { .. } => Count::DhcpNextLoader,
    })
}

fn tell(notice: &Notice, interfaces: &[Arc<Interface>], loud: bool) {
    let text = match notice {
        Notice::OtherServer { interface, rival } => {
            let name = interfaces.iter().find(|i| i.index == *interface).map_or("?", |i| i.name.as_str());
            format!(
                "another server, {}, answers machines that boot on {name}: {}",
                rival.server,
                meaning(rival)
            )
        }
        Notice::Restarting { mac, count } => {
            format!("{mac} has started {count} times within a quarter of an hour: `bootstorm explain {mac}`")
        }
        Notice::LateFirst { mac, secs } => format!(
            "{mac} had been asking for {secs} s when it was first heard: its switch port does not forward at once; \
             switch spanning tree to edge (portfast) there"
        ),
        Notice::InUse { ip, by } => {
            let by = by.map_or_else(|| "some machine".into(), |mac| mac.to_string());
            format!(
                "{ip} is in use by {by}, without a lease: nobody is offered it for ten minutes; take it out of the range"
            )
        }
        Notice::Disbelieved { by } => {
            let by = by.map_or_else(|| "some machine".into(), |mac| mac.to_string());
            format!(
                "more addresses are said to be in use than can be, the last by {by}: from here on they are offered all the \
                 same; look for a router with proxy ARP, or for who means harm"
            )
        }
        Notice::NextLoader { mac, .. } => {
            format!(
                "{mac} came back without having reached its script: the next loader is tried, if there is one"
            )
        }
    };
    match notice {
        Notice::OtherServer { .. } | Notice::InUse { .. } | Notice::Disbelieved { .. } if loud => {
            tracing::warn!("{text}");
        }
        // Of one machine, or of a stranger in its name: counted, in its timeline, and an alarm where it has a job.
        _ => tracing::debug!("{text}"),
    }
}

/// What another server's answers do to machines, in words.
fn meaning(rival: &Rival) -> &'static str {
    match (rival.pxe, rival.has_vendor_options, rival.gives_addresses, rival.has_file) {
        (true, false, true, false) => {
            "option 60 in its leases without option 43 sends firmware to its port 4011, where it hangs (PXE-E55); take \
             option 60 out of its settings"
        }
        (true, ..) => "a second PXE server; machines without a job are left to it for one retry",
        (false, _, true, true) => {
            "it names a boot file in its leases, which iPXE prefers to ours; take options 66 and 67 out of its settings"
        }
        (false, ..) => "it names a boot file",
    }
}
