//! From a request to its answer: routes, scripts, answer files, call-backs.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use super::super::native;
use super::delivery::{note, note_with};
use super::files::opens;
use super::parked::{Parked, ParkedAnswer};
use super::{HttpSide, STANDING_MAX, STANDS_FOR, STANDS_LOOK, Standing};
use crate::engine::core::Turn;
use crate::engine::counters::Count;
use crate::engine::shared::unix_seconds;
use crate::engine::slab::Key;
use crate::files::catalog::NotServed;
use crate::jobs::Identity;
use crate::jobs::admission::{self, Share, Turn as Place, Who};
use crate::jobs::answers::{self, Asking};
use crate::jobs::evidence::{Cause, Evidence, Seen, Why};
use crate::jobs::image::{Access, Images};
use crate::jobs::reach::{self, Shut};
use crate::jobs::script::{self, Barrier, Composed, Context, Hints, Offer, barrier_of_script};
use crate::jobs::table::Decision;
use crate::jobs::template::Values;
use crate::jobs::token::{BootId, Token as BootToken};
use crate::keeper::{Answer, AtTheLine};
use crate::proto::http::{self as plan, Body, Route};
use crate::wire::http::{Method, PATH_MAX, Request, Status, decode_path, is_decoded};

const TEXT: &str = "text/plain";
/// Longest path kept of what was refused.
const PATH_SHOWN_MAX: usize = 160;
const NOT_THERE: &str = "the library has no such file";
/// Longest reason kept of a call-back.
const REASON_MAX: usize = 160;
/// Longest name kept of an answer file that was withheld.
const NAME_MAX: usize = 64;

impl HttpSide {
    /// `stood` if the request stood in line: then it was counted when it came.
    pub(super) fn answer(
        &mut self,
        key: Key,
        request: &Request<'_>,
        stood: Option<Standing>,
        turn: &mut Turn<'_>,
    ) {
        if stood.is_none() {
            turn.tally.add(Count::HttpRequests, 1);
        } else if self.connections.get_mut(key).is_some_and(|connection| connection.closing) {
            // A place would be given to who has gone. Who only has nothing more to say is told to come back.
            self.head.clear();
            let answer = plan::answer_busy(request, 1, turn.wall, &mut self.head);
            return self.respond(key, !answer.close, turn);
        }
        self.head.clear();
        let now = turn.wall;
        let mut buffer;
        if !request.path.starts_with('/') {
            // `OPTIONS *` and CONNECT ask about the server, not about something on it.
            let answer = plan::answer_not_allowed(request, "GET, HEAD, POST", now, &mut self.head);
            return self.respond(key, !answer.close, turn);
        }
        let path = if is_decoded(request.path) {
            Ok(request.path)
        } else {
            buffer = [0; PATH_MAX];
            decode_path(request.path, &mut buffer)
        };
        let route = path.map_or(Route::NotFound, plan::route);
        match route {
            Route::Image { path } => {
                let served = turn.shared.library.load().http_image(path);
                match served {
                    Ok(served) if served.access == Access::Open => {
                        self.answer_file(key, request, &served, None, now, turn)
                    }
                    Ok(_) => {
                        let why = "this image is given only to a boot with a token";
                        self.refuse(key, request, None, path, Status::FORBIDDEN, why, now, turn)
                    }
                    Err(_) => self.refuse(key, request, None, path, Status::NOT_FOUND, NOT_THERE, now, turn),
                }
            }
            Route::Loader { name } if native::is_denied(turn.shared, *self.asked_by.0.ip()) => {
                let why = "this machine is refused here";
                self.refuse(key, request, None, name, Status::FORBIDDEN, why, now, turn)
            }
            Route::Loader { name } => match turn.shared.library.load().loader(name) {
                Ok(served) => self.answer_file(key, request, &served, None, now, turn),
                Err(_) => {
                    let why = "no such loader";
                    self.refuse(key, request, None, name, Status::NOT_FOUND, why, now, turn)
                }
            },
            Route::Boot { rest, .. } if rest.starts_with("answers/") && self.is_parked(key) => {
                self.answer_once(key, request, now, turn);
            }
            Route::Boot { token, rest } => {
                let Some(token) = turn.shared.key().verify(token, unix_seconds(turn.wall)) else {
                    turn.tally.add(Count::BadTokens, 1);
                    // Of a token that was good once it is known whose it was.
                    let old = turn.shared.key().verify(token, 0);
                    if old.is_some_and(|old| old.boot == BootId::SHOWN) {
                        // Somebody tries what `script render` printed: no boot of the machine that it was rendered for.
                        return self.answer_error(key, request, Status::FORBIDDEN, now, turn);
                    }
                    let why =
                        if old.is_some() { "the token has expired" } else { "it is no token of this server" };
                    return self.refuse(key, request, old, rest, Status::FORBIDDEN, why, now, turn);
                };
                if matches!(rest, "confirm" | "failed") {
                    return self.answer_call_back(key, request, &token, rest == "failed", now, turn);
                }
                if rest == "local" {
                    return self.answer_local_back(key, request, &token, now, turn);
                }
                if let Some(name) = rest.strip_prefix("answers/") {
                    return self.answer_answers(key, request, &token, name, now, turn);
                }
                let catalog = turn.shared.library.load();
                let served = match rest.split_once('/') {
                    Some(("images", path)) => catalog.http_image(path),
                    Some(("loaders", name)) => catalog.loader(name),
                    _ => Err(NotServed::NotFound),
                };
                match served {
                    Ok(served) => {
                        if let Err(why) = opens(&token, &served, turn.shared) {
                            turn.tally.add(Count::TokensShut, 1);
                            tracing::debug!(boot = %token.boot, name = served.name, %why, "not opened");
                            let why = why.to_string();
                            return self.refuse(
                                key,
                                request,
                                Some(token),
                                rest,
                                Status::FORBIDDEN,
                                &why,
                                now,
                                turn,
                            );
                        }
                        self.answer_file(key, request, &served, Some(token), now, turn)
                    }
                    Err(_) => {
                        self.refuse(key, request, Some(token), rest, Status::NOT_FOUND, NOT_THERE, now, turn)
                    }
                }
            }
            Route::Script(_) => self.answer_script(key, request, stood, now, turn),
            Route::Autoexec => self.answer_ask(key, request, now, turn),
            Route::Health if !matches!(request.method, Method::Get | Method::Head) => {
                let answer = plan::answer_not_allowed(request, "GET, HEAD", now, &mut self.head);
                self.respond(key, !answer.close, turn);
            }
            Route::Health => {
                let answer = plan::answer_text(request, Status::OK, TEXT, 3, &[], now, &mut self.head);
                if answer.body == Body::Inline {
                    self.head.extend_from_slice(b"ok\n");
                }
                self.respond(key, !answer.close, turn);
            }
            Route::NotFound => self.answer_error(key, request, Status::NOT_FOUND, now, turn),
        }
    }

    pub(super) fn answer_error(
        &mut self,
        key: Key,
        request: &Request<'_>,
        status: Status,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let answer = plan::answer_error(Some(request), status, now, &mut self.head);
        self.respond(key, !answer.close, turn);
    }

    /// Answers with an error, and tells the flight recorder what was asked for and why it is not given: of a boot's token,
    /// or of an address where a machine was seen. What others ask for is no boot's business.
    #[allow(clippy::too_many_arguments, reason = "what is asked, by whom, and why it is not given")]
    fn refuse(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: Option<BootToken>,
        path: &str,
        status: Status,
        why: &str,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        self.answer_error(key, request, status, now, turn);
        let peer = *self.asked_by.0.ip();
        if token.is_none() && turn.shared.sightings.at(peer).is_none() {
            return;
        }
        let path = path.strip_prefix("images/").unwrap_or(path);
        let path = path.chars().take(PATH_SHOWN_MAX).collect();
        let seen = Seen::HttpRefused { path, status: status.code(), reason: why.to_owned() };
        note_with(turn.shared, token, peer, seen, self.packets(0));
    }

    /// Sends `self.script` as the body.
    pub(super) fn answer_rendered(
        &mut self,
        key: Key,
        request: &Request<'_>,
        content_type: &str,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        if !matches!(request.method, Method::Get | Method::Head | Method::Post) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        // A script is this machine's, now: no cache may keep it.
        let extra = [("Cache-Control", "no-store")];
        let script = std::mem::take(&mut self.script);
        let len = script.len() as u64;
        let answer = plan::answer_text(request, Status::OK, content_type, len, &extra, now, &mut self.head);
        let body = if answer.body == Body::Inline { script.as_str() } else { "" };
        self.respond_with(key, body, !answer.close, turn);
        self.script = script;
    }

    /// The constant script for who has not said who it is.
    pub(super) fn answer_ask(
        &mut self,
        key: Key,
        request: &Request<'_>,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        let base = self.base_url(key);
        if self.asking.is_empty() {
            script::ask_identity(&base, &mut self.asking);
        }
        let mut evidence = Evidence::new(now, Seen::IdentityAsked);
        evidence.mac = turn.shared.sightings.at(peer).map(|seen| seen.mac);
        evidence.address = Some(peer);
        std::mem::swap(&mut self.script, &mut self.asking);
        self.answer_rendered(key, request, TEXT, now, turn);
        std::mem::swap(&mut self.script, &mut self.asking);
        evidence.packets = self.packets(self.asking.len() as u64);
        turn.shared.note(evidence);
    }

    /// `stood` if its request stood in line.
    fn answer_script(
        &mut self,
        key: Key,
        request: &Request<'_>,
        stood: Option<Standing>,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        // Before anything is made of it: what is not given moves nothing.
        if !matches!(request.method, Method::Get | Method::Head | Method::Post) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        let (peer, local) = (*connection.peer.ip(), *connection.local.ip());
        let base = self.base_url(key);
        let mut who = plan::identity(request);
        let named = who.mac.is_some() || who.uuid.is_some() || who.serial.is_some() || who.asset.is_some();
        if !named {
            if request.is_ipxe() || request.method == Method::Post {
                return self.answer_ask(key, request, now, turn);
            }
            self.script.clear();
            let catalog = turn.shared.library.load();
            script::options_page(&**catalog, &mut self.script);
            return self.answer_rendered(key, request, "text/html; charset=utf-8", now, turn);
        }
        if let Some(connection) = self.connections.get_mut(key)
            && let Some(parked) = connection.parked.take()
        {
            return self.answer_parked(key, request, *parked, now, turn);
        }
        let view = turn.shared.keeper.table().view();
        // The short address that DHCP hands out carries a MAC address and nothing else. Where that decides nothing,
        // the machine is asked for the rest of its identity, which a job may be about.
        if request.is_ipxe() && who.platform.is_none() && matches!(view.decide(&who), Decision::NoJob) {
            return self.answer_ask(key, request, now, turn);
        }
        who.address = Some(peer);
        if let Some(seen) = turn.shared.sightings.at(peer).filter(|seen| who.mac == Some(seen.mac)) {
            who.arch = who.arch.or(Some(seen.arch));
            // Only DHCP is told it.
            who.circuit = seen.circuit;
        }
        let policy = turn.shared.policy.load();
        let catalog = turn.shared.library.load();
        let context = Context {
            base_url: &base,
            boot: turn.shared.next_boot(),
            key: turn.shared.key(),
            now_unix: unix_seconds(turn.wall),
            policy: &policy,
            hints: Hints::of(&view, &who),
        };
        let decision = view.decide(&who);
        let mut composed = script::compose(decision, &**catalog, &who, &context, &mut self.script);
        let elsewhere = turn.shared.elsewhere(who.mac, peer);
        // Who asks from elsewhere has a place of their own, not the machine's.
        let waits_as = match (who.mac, elsewhere) {
            (Some(mac), None) => Who::Mac(mac),
            (Some(mac), Some(_)) => Who::Elsewhere(mac, peer),
            (None, _) => Who::Address(peer),
        };
        let seen = turn.shared.line_moves();
        let place = self.place_in_line(request, &composed, &who, waits_as, (peer, local), turn);
        if matches!(place, Place::Wait { next: true, .. })
            && request.is_ipxe()
            && self.stands(key, stood, seen, turn)
        {
            return;
        }
        turn.tally.add(Count::HttpScripts, 1);
        let image = composed.image.as_deref().and_then(|name| catalog.image(name));
        let any = || catalog.list().iter().any(|image| !image.answers.is_empty());
        if image.is_some_and(|image| !image.answers.is_empty()) || composed.what == Offer::Menu && any() {
            turn.shared.presented.record(composed.boot, &who);
        }
        match place {
            Place::Now => {}
            Place::Wait { place, about, again, .. } => {
                turn.tally.add(Count::ScriptsQueued, 1);
                script::queued(&who, &base, place, about, again, &mut self.script);
                // No boot of its job yet, only a question.
                (composed.job, composed.image, composed.what) = (None, None, Offer::Queued);
            }
            Place::Full { again } => {
                turn.tally.add(Count::ScriptsQueued, 1);
                let seconds = u32::try_from(again.as_secs().max(1)).unwrap_or(u32::MAX);
                if request.is_ipxe() {
                    let answer = plan::answer_busy(request, seconds, now, &mut self.head);
                    return self.respond(key, !answer.close, turn);
                }
                let place = admission::LINE_MAX as u32;
                script::queued(&who, &base, place, None, admission::AGAIN_MAX, &mut self.script);
                (composed.job, composed.image, composed.what) = (None, None, Offer::Queued);
            }
        }
        if request.method == Method::Head {
            return self.answer_rendered(key, request, TEXT, now, turn);
        }
        let once = decision.job().filter(|job| !job.always).map(|job| job.id);
        let seen = Seen::ScriptAsked {
            job: composed.job,
            offer: composed.what.word().to_owned(),
            image: composed.image.clone(),
        };
        let mut evidence = Evidence::new(now, seen);
        evidence.mac = who.mac;
        evidence.uuid = who.uuid;
        evidence.serial.clone_from(&who.serial);
        evidence.asset.clone_from(&who.asset);
        evidence.boot = Some(composed.boot);
        evidence.address = Some(peer);
        evidence.elsewhere = elsewhere;
        let excluded = who.mac.is_some_and(|mac| policy.excludes(mac));
        evidence.why = Some(why_of(&decision, excluded, composed.why));
        // What such a script starts fetches the rest as it likes: the script itself is what must not leave too soon.
        if let (Offer::Image, Some(job), Some(image)) = (composed.what, once, composed.image)
            && catalog.image(&image).and_then(|image| barrier_of_script(image, &who)) == Some(Barrier::Script)
        {
            if let Some(place) = evidence.elsewhere.filter(|_| !request.is_ipxe()) {
                // Somebody looks. To iPXE it is given, which may have come by way of a proxy.
                let why = format!("the machine is at {place}, and this is another address");
                script::refused(&who, job, &why, &mut self.script);
                return self.answer_rendered(key, request, TEXT, now, turn);
            }
            let what = "the script".to_owned();
            let line = AtTheLine {
                boot: composed.boot,
                job,
                image,
                what,
                idents: Vec::new(),
                once: None,
                changed: false,
            };
            evidence.packets = self.packets(0);
            turn.shared.note(evidence);
            let script = std::mem::take(&mut self.script);
            return self.park(key, line, ParkedAnswer::Script { script, who: Box::new(who) }, turn);
        }
        self.answer_rendered(key, request, TEXT, now, turn);
        evidence.packets = self.packets(self.script.len() as u64);
        turn.shared.note(evidence);
    }

    /// Lets a request stand in line, as it was `seen` before it was looked at; false when it has stood long enough, or too many do.
    fn stands(&mut self, key: Key, stood: Option<Standing>, seen: u64, turn: &mut Turn<'_>) -> bool {
        let kept = !self.asked.is_empty();
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let until = stood.map_or(turn.now + STANDS_FOR, |standing| standing.until);
        if turn.now >= until || self.standing >= STANDING_MAX {
            return false;
        }
        connection.stands = Some(Standing { until, seen, kept });
        connection.deadline = until.min(turn.now + STANDS_LOOK);
        self.standing += 1;
        self.arm(key, turn);
        true
    }

    /// Whether what was composed may be given now. Only boots with a last file wait: of others nobody would know when
    /// their place is free.
    fn place_in_line(
        &self,
        request: &Request<'_>,
        composed: &Composed,
        who: &Identity,
        waits_as: Who,
        (from, link): (Ipv4Addr, Ipv4Addr),
        turn: &Turn<'_>,
    ) -> Place {
        let Some(image) = &composed.image else { return Place::Now };
        let catalog = turn.shared.library.load();
        let ends = matches!(
            catalog.image(image).and_then(|image| barrier_of_script(image, who)),
            Some(Barrier::File(_))
        );
        if composed.what != Offer::Image || request.method == Method::Head || !ends {
            return Place::Now;
        }
        let share = Share { image: image.as_str().into(), from, link };
        let admission = turn.shared.admission();
        admission.map_or(Place::Now, |mut admission| admission.ask(turn.now, waits_as, composed.boot, share))
    }

    /// Answers a script's request once the keeper has.
    pub(super) fn answer_parked(
        &mut self,
        key: Key,
        request: &Request<'_>,
        parked: Parked,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let base = self.base_url(key);
        let ParkedAnswer::Script { script, who } = parked.what else { return };
        match parked.answer {
            Some(Answer::Go) => {
                self.script = script;
                native::passed_by_script(&parked.line.image, &who, *self.asked_by.0.ip(), turn);
            }
            Some(Answer::Refused(denial)) => {
                script::refused(&who, parked.line.job, &denial, &mut self.script);
            }
            Some(Answer::NotNow) | None => script::not_now(&who, &base, &mut self.script),
        }
        self.answer_rendered(key, request, TEXT, now, turn);
    }

    /// `/s/TOKEN/local?strategy=WORD`: a way to the local disk came back.
    pub(super) fn answer_local_back(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: &BootToken,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        if !matches!(request.method, Method::Get | Method::Post) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        let Some(strategy) = plan::strategy(request) else {
            return self.answer_error(key, request, Status::BAD_REQUEST, now, turn);
        };
        let Some(connection) = self.connections.get_mut(key) else { return };
        let seen = Seen::LocalBack { strategy: strategy.word().to_owned() };
        note(turn.shared, Some(*token), *connection.peer.ip(), seen);
        let answer = plan::answer_text(request, Status::OK, TEXT, 3, &[], now, &mut self.head);
        if answer.body == Body::Inline {
            self.head.extend_from_slice(b"ok\n");
        }
        self.respond(key, !answer.close, turn);
    }

    pub(super) fn is_parked(&mut self, key: Key) -> bool {
        self.connections.get_mut(key).is_some_and(|connection| connection.parked.is_some())
    }

    /// `/s/TOKEN/answers/IMAGE/NAME`; the image may be left out where the boot has one.
    pub(super) fn answer_answers(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: &BootToken,
        name: &str,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        if !matches!(request.method, Method::Get | Method::Head) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        let base = self.base_url(key);
        let shared = turn.shared;
        let view = shared.keeper.table().view();
        let mut who = Identity { mac: token.mac, ..Identity::default() };
        let standing = view.standing(&who);
        let job = token.job.and_then(|job| view.job(job));
        let catalog = shared.library.load();
        let (asked, name) = match name.split_once('/') {
            Some((asked, name)) => match catalog.image(asked) {
                Some(image) => (Some(image), name),
                None => return self.answer_error(key, request, Status::NOT_FOUND, now, turn),
            },
            None => (None, name),
        };
        let image = match () {
            () if standing.is_some_and(|standing| standing.rejected) => Err(Shut::Rejected),
            () if token.mac.is_some_and(|mac| shared.policy.load().excludes(mac)) => Err(Shut::Rejected),
            () => reach::answers_of(token, job, asked),
        };
        let image = match image {
            Ok(image) => image,
            Err(why) => {
                turn.tally.add(Count::TokensShut, 1);
                return self.withhold(key, request, token, name, &why, now, turn);
            }
        };
        let answer =
            catalog.image(image).and_then(|image| image.answers.iter().find(|answer| answer.name == name));
        let Some(answer) = answer else {
            return self.answer_error(key, request, Status::NOT_FOUND, now, turn);
        };
        let asking = Asking {
            token: *token,
            from: peer,
            seen: shared.sightings.at(peer).map(|seen| seen.mac),
            // What rules gave is with the machines: only the keeper knows.
            given_before: job.is_some_and(|job| job.given.has(token.boot, name)),
        };
        if let Err(why) = answers::may_have(answer, &asking) {
            return self.withhold(key, request, token, name, &why, now, turn);
        }
        if let Some(known) = shared.presented.of(token.boot) {
            who = known;
        }
        who.address = Some(peer);
        let values = Values {
            who: &who,
            hostname: standing.and_then(|standing| standing.name.as_deref()),
            job: token.job,
            boot: token.boot,
            image,
            base_url: &base,
            token: &shared.key().sign(token),
        };
        answer.render(&values, &mut self.script);
        let content_type = answer.content_type();
        if request.method == Method::Head {
            return self.answer_rendered(key, request, content_type, now, turn);
        }
        if let (true, Some(job), Some(mac)) = (answer.once, token.job, token.mac) {
            let line = AtTheLine {
                boot: token.boot,
                job,
                image: image.to_owned(),
                what: format!("the answer file {name}"),
                idents: Vec::new(),
                once: Some((mac, name.to_owned())),
                changed: false,
            };
            let (text, name) = (std::mem::take(&mut self.script), name.to_owned());
            let what = ParkedAnswer::Once { text, content_type, token: *token, name };
            return self.park(key, line, what, turn);
        }
        note(shared, Some(*token), peer, Seen::AnswerGiven { name: name.to_owned() });
        self.answer_rendered(key, request, content_type, now, turn);
    }

    /// Answers an answer file's request once it is stored that it is given, or that it was before.
    pub(super) fn answer_once(
        &mut self,
        key: Key,
        request: &Request<'_>,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        let Some(parked) = connection.parked.take() else { return };
        let ParkedAnswer::Once { text, content_type, token, name } = parked.what else { return };
        match parked.answer {
            Some(Answer::Go) => {
                self.script = text;
                note(turn.shared, Some(token), peer, Seen::AnswerGiven { name });
                self.answer_rendered(key, request, content_type, now, turn);
            }
            Some(Answer::Refused(why)) => self.withhold(key, request, &token, &name, &why, now, turn),
            // It asks the keeper again for as long as it is parked, so there is no such answer to act on.
            Some(Answer::NotNow) | None => self.close(key, None, turn),
        }
    }

    /// An answer file is not given, and `explain` hears why.
    #[allow(clippy::too_many_arguments, reason = "what is asked, by whom, and why it is not given")]
    pub(super) fn withhold(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: &BootToken,
        name: &str,
        why: &dyn std::fmt::Display,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        turn.tally.add(Count::AnswersWithheld, 1);
        tracing::debug!(boot = %token.boot, name, %why, "answer file withheld");
        let name = name.chars().take(NAME_MAX).collect();
        note(turn.shared, Some(*token), peer, Seen::AnswerWithheld { name, reason: why.to_string() });
        self.answer_error(key, request, Status::FORBIDDEN, now, turn);
    }

    /// `/s/TOKEN/confirm` and `/s/TOKEN/failed`: moves the token's own boot forward, and nothing else.
    pub(super) fn answer_call_back(
        &mut self,
        key: Key,
        request: &Request<'_>,
        token: &BootToken,
        failed: bool,
        now: SystemTime,
        turn: &mut Turn<'_>,
    ) {
        if !matches!(request.method, Method::Get | Method::Post) {
            return self.answer_error(key, request, Status::METHOD_NOT_ALLOWED, now, turn);
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        let peer = *connection.peer.ip();
        if let Some(job) = token.job {
            let seen = match failed {
                true => Seen::FailureCalled { job, reason: plan::reason(request, REASON_MAX) },
                false => Seen::CalledBack { job },
            };
            note(turn.shared, Some(*token), peer, seen);
        }
        let answer = plan::answer_text(request, Status::OK, TEXT, 3, &[], now, &mut self.head);
        if answer.body == Body::Inline {
            self.head.extend_from_slice(b"ok\n");
        }
        self.respond(key, !answer.close, turn);
    }
}

/// Why a machine gets the script that it gets; `not_booted` is why it is not the job's image.
fn why_of(decision: &Decision<'_>, excluded: bool, not_booted: Option<String>) -> Why {
    let (cause, job) = match decision {
        _ if excluded => (Cause::Excluded, None),
        Decision::Job(job) => (Cause::Job, Some(job)),
        Decision::Done(job) => (Cause::of_done(job), Some(job)),
        Decision::Rejected => (Cause::Rejected, None),
        Decision::NoJob => (Cause::Policy, None),
    };
    // A live job's own words say where it stood before this script, which would only confuse.
    let said = not_booted.or_else(|| job.filter(|_| cause != Cause::Job).map(|job| job.reason.clone()));
    Why { cause, said: said.unwrap_or_default() }
}
