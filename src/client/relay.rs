//! A DHCP relay between a simulated machine and the server (RFC 1542, 3046, 8357). It lets a machine without a
//! network card of its own take part: the server answers to the relay's address, at the port the relay sent from.

use std::net::Ipv4Addr;

use crate::wire::dhcp::{OPTIONS_OFFSET, code};

/// Relay Source Port: answer to the port the request came from (RFC 8357 §5.2).
const RELAY_SOURCE_PORT: u8 = 19;
const GIADDR_OFFSET: usize = 24;
const HOPS_OFFSET: usize = 3;

/// One relay, for one circuit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relay {
    /// Its address on the machines' network.
    pub giaddr: Ipv4Addr,
    /// What it says of the port the machine is on (option 82, circuit id).
    pub circuit: Vec<u8>,
}

impl Relay {
    /// A machine's message as the server gets it; `None` when it is no DHCP message.
    pub fn to_server(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut out = message.get(..OPTIONS_OFFSET)?.to_vec();
        *out.get_mut(HOPS_OFFSET)? += 1;
        out.get_mut(GIADDR_OFFSET..GIADDR_OFFSET + 4)?.copy_from_slice(&self.giaddr.octets());
        let mut at = OPTIONS_OFFSET;
        loop {
            match *message.get(at)? {
                code::END => break,
                code::PAD => at += 1,
                _ => {
                    let end = at + 2 + usize::from(*message.get(at + 1)?);
                    out.extend_from_slice(message.get(at..end)?);
                    at = end;
                }
            }
        }
        let circuit_len = u8::try_from(self.circuit.len()).ok().filter(|len| *len <= 200)?;
        out.extend_from_slice(&[code::RELAY_AGENT, circuit_len + 4, 1, circuit_len]);
        out.extend_from_slice(&self.circuit);
        out.extend_from_slice(&[RELAY_SOURCE_PORT, 0, code::END]);
        Some(out)
    }

    /// The server's answer as the machine gets it: without option 82 (RFC 3046 §2.2).
    pub fn to_machine(message: &[u8]) -> Option<Vec<u8>> {
        let mut out = message.get(..OPTIONS_OFFSET)?.to_vec();
        let mut at = OPTIONS_OFFSET;
        while let Some(&option) = message.get(at) {
            match option {
                code::END => break,
                code::PAD => at += 1,
                _ => {
                    let end = at + 2 + usize::from(*message.get(at + 1)?);
                    let body = message.get(at..end)?;
                    if option != code::RELAY_AGENT {
                        out.extend_from_slice(body);
                    }
                    at = end;
                }
            }
        }
        out.push(code::END);
        Some(out)
    }
}
