//! `explain`: a machine's last boots, from the running server.

use super::args::{Common, Explain};
use super::{Done, Exit, Failure, client, output};
use crate::control::client::escaped;
use crate::history::Named;

pub(super) fn run(common: &Common, explain: &Explain) -> Done {
    if explain.machine.parse::<Named>().is_err() {
        let message = format!("{:?} is no MAC address or UUID", explain.machine);
        return Err(Failure::new(Exit::Usage, message));
    }
    let answer = client(common)?.get(&format!("/v1/boots?machine={}", escaped(&explain.machine)))?;
    if explain.json {
        output::json(&answer);
        return Ok(Exit::Fine);
    }
    let texts = answer["text"].as_array().map(Vec::as_slice).unwrap_or_default();
    if texts.is_empty() {
        output::line(format!(
            "nothing was seen of {} since the server started: it asked neither for an address here nor for a file",
            explain.machine
        ));
        return Ok(Exit::Wrong);
    }
    for text in texts {
        output::line(text.as_str().unwrap_or_default());
    }
    Ok(Exit::Fine)
}
