//! Answers at the point of no return: kept back until the keeper has said that they may leave.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::HttpSide;
use super::sending::SEND_PATIENCE;
use crate::engine::core::{Owner, Turn};
use crate::engine::slab::Key;
use crate::jobs::Identity;
use crate::jobs::token::Token as BootToken;
use crate::keeper::{Answer, AtTheLine};
use crate::sys::tcp;

/// A boot that cannot be recorded asks again this often, and waits this long for it.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const HELD_PATIENCE: Duration = Duration::from_secs(30);

/// A boot at its point of no return: what leaves next could start an installer.
pub(super) struct Parked {
    pub(super) line: AtTheLine,
    pub(super) what: ParkedAnswer,
    /// What the keeper said, until it is acted on.
    pub(super) answer: Option<Answer>,
    /// When to ask again, after a *not now*.
    pub(super) again: Option<Instant>,
    pub(super) until: Instant,
}

/// What is parked.
pub(super) enum ParkedAnswer {
    /// A body stopped at [`Piece::Held`].
    File,
    /// A script, with whom it is for. The request it answers is still in the connection's input.
    Script { script: String, who: Box<Identity> },
    /// An answer file that is given once. Its request is still in the connection's input too.
    Once { text: String, content_type: &'static str, token: BootToken, name: String },
}

impl HttpSide {
    /// Asks the keeper whether what is parked may leave.
    pub(super) fn park(&mut self, key: Key, line: AtTheLine, what: ParkedAnswer, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        turn.shared.keeper.ask(line.clone(), Owner::Connection(key).pack(), turn.desk);
        let until = turn.now + HELD_PATIENCE;
        connection.parked = Some(Box::new(Parked { line, what, answer: None, again: None, until }));
        connection.deadline = until;
        self.arm(key, turn);
    }

    /// The keeper's answer to what a connection asked.
    pub(in crate::engine) fn answered(&mut self, key: Key, answer: Answer) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(parked) = &mut connection.parked {
            parked.answer = Some(answer);
            self.list(key);
        }
    }

    /// Acts on the keeper's answer; false while there is none, or when the connection is at its end.
    pub(super) fn unpark(&mut self, key: Key, turn: &mut Turn<'_>) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let Some(parked) = &mut connection.parked else { return true };
        let Some(answer) = parked.answer else { return false };
        let is_file = matches!(parked.what, ParkedAnswer::File);
        let asks_again = is_file || matches!(parked.what, ParkedAnswer::Once { .. });
        match answer {
            Answer::Go if is_file => {
                connection.parked = None;
                connection.out.release();
                connection.deadline = turn.now + SEND_PATIENCE;
                true
            }
            Answer::NotNow if asks_again => {
                parked.answer = None;
                let again = turn.now + ASK_AGAIN;
                parked.again = Some(again);
                connection.deadline = again.min(parked.until);
                self.arm(key, turn);
                false
            }
            Answer::Refused(denial) if is_file => {
                tracing::debug!(peer = %connection.peer, job = %parked.line.job, boot = %parked.line.boot, %denial,
                    "download cut at the point of no return");
                tcp::reset_on_close(connection.stream.as_raw_fd());
                self.close(key, Some(&format!("refused at the point of no return: {denial}")), turn);
                false
            }
            // A script and an answer file are answered from their request, which is still there.
            Answer::Go | Answer::NotNow | Answer::Refused(_) => true,
        }
    }
}
