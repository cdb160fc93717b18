//! `Idempotency-Key`: an order repeated under the same key gets the first one's answer and is not carried out again.
//!
//! Answers are kept in memory for an hour and within a bound, so a restart forgets them; what survives a restart is
//! the job itself, and a second one for the same machine is refused. Only answers of success are kept: an order that
//! was refused can be mended and repeated under its key.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::auth::{Caller, Role};
use super::problem::Problem;
use super::{Admin, body_max, in_time};

/// How long an answer is kept.
pub(super) const KEPT: Duration = Duration::from_secs(60 * 60);
/// Longest key, bytes.
const KEY_MAX: usize = 255;
/// Answers kept, and the sum of their bytes.
const ANSWERS_MAX: usize = 4_096;
const BYTES_MAX: usize = 16 << 20;

/// What was answered, or that it is being found out.
#[derive(Clone, Debug)]
enum Phase {
    UnderWay,
    Answered { status: StatusCode, headers: Vec<(header::HeaderName, HeaderValue)>, body: Bytes },
}

#[derive(Clone, Debug)]
struct Kept {
    print: blake3::Hash,
    since: Instant,
    phase: Phase,
}

/// Answers by who asked, what, and under which key.
#[derive(Debug, Default)]
pub(super) struct Answers {
    kept: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_key: HashMap<String, Kept>,
    order: VecDeque<String>,
    bytes: usize,
}

/// What to do with a request under a key.
#[derive(Debug)]
enum Found {
    New,
    Same(Box<Response>),
    UnderWay,
    Other,
}

impl Answers {
    fn begin(&self, key: &str, print: blake3::Hash, now: Instant) -> Found {
        let mut inner = self.lock();
        inner.forget_old(now);
        if let Some(kept) = inner.by_key.get(key) {
            return match &kept.phase {
                _ if kept.print != print => Found::Other,
                Phase::UnderWay => Found::UnderWay,
                Phase::Answered { status, headers, body } => {
                    let mut response = (*status, body.clone()).into_response();
                    for (name, value) in headers {
                        response.headers_mut().insert(name.clone(), value.clone());
                    }
                    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
                    Found::Same(Box::new(response))
                }
            };
        }
        inner.by_key.insert(key.to_owned(), Kept { print, since: now, phase: Phase::UnderWay });
        inner.order.push_back(key.to_owned());
        inner.keep_within_bounds();
        Found::New
    }

    fn end(&self, key: &str, status: StatusCode, headers: &HeaderMap, body: &Bytes) {
        let mut inner = self.lock();
        if !status.is_success() {
            inner.remove(key);
            // It would count among the answers that are kept.
            inner.order.retain(|other| other != key);
            return;
        }
        let kept_headers = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];
        let headers = kept_headers
            .into_iter()
            .filter_map(|name| Some((name.clone(), headers.get(&name)?.clone())))
            .collect();
        if let Some(kept) = inner.by_key.get_mut(key) {
            kept.phase = Phase::Answered { status, headers, body: body.clone() };
            inner.bytes += body.len();
        }
        inner.keep_within_bounds();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remove(&mut self, key: &str) {
        if let Some(Kept { phase: Phase::Answered { body, .. }, .. }) = self.by_key.remove(key) {
            self.bytes -= body.len();
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(key) = self.order.front() {
            if self.by_key.get(key).is_some_and(|kept| now.duration_since(kept.since) < KEPT) {
                break;
            }
            if let Some(key) = self.order.pop_front() {
                self.remove(&key);
            }
        }
    }

    fn keep_within_bounds(&mut self) {
        for _ in 0..self.order.len() {
            if self.order.len() <= ANSWERS_MAX && self.bytes <= BYTES_MAX {
                return;
            }
            let Some(key) = self.order.pop_front() else { return };
            // One that is being carried out must not be carried out again; there are no more of them than connections.
            if self.by_key.get(&key).is_some_and(|kept| matches!(kept.phase, Phase::UnderWay)) {
                self.order.push_back(key);
            } else {
                self.remove(&key);
            }
        }
    }
}

/// Answers a repeated order from memory.
pub(super) async fn repeat(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get("idempotency-key").filter(|_| request.method() == Method::POST)
    else {
        return next.run(request).await;
    };
    let key = match key.to_str().map(str::trim) {
        Ok(key) if !key.is_empty() && key.len() <= KEY_MAX => key,
        _ => {
            return Problem::bad("not-a-key", "Idempotency-Key: expected 1 to 255 printable characters")
                .into_response();
        }
    };
    let path = request.uri().path().to_owned();
    if path == "/v1/tokens" {
        let detail = "a token is shown once, so its answer is not kept: leave the Idempotency-Key out";
        return Problem::bad("no-key-here", detail).into_response();
    }
    // Nothing is kept for who may order nothing: that is refused, or needs no key, before its body is read.
    let Some(who) = request.extensions().get::<Caller>().filter(|caller| caller.role >= Role::Operate) else {
        return next.run(request).await;
    };
    let who = who.name.clone();
    let key = format!("{who}\n{path}\n{key}");
    let (parts, body) = request.into_parts();
    let bytes = match in_time(to_bytes(body, body_max(&path))).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return Problem::too_large().into_response(),
        Err(late) => return late.into_response(),
    };
    let mut print = blake3::Hasher::new();
    print.update(parts.uri.query().unwrap_or_default().as_bytes()).update(b"\n").update(&bytes);
    match admin.answers.begin(&key, print.finalize(), Instant::now()) {
        Found::Same(response) => return *response,
        Found::UnderWay => {
            let detail = "the first order under this Idempotency-Key is still being carried out";
            return Problem::new(StatusCode::CONFLICT, "key-under-way", detail)
                .retry_after(1)
                .into_response();
        }
        Found::Other => {
            let detail = "this Idempotency-Key was used for another order; use a new one for a new order";
            return Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "key-reused", detail).into_response();
        }
        Found::New => {}
    }
    // Whoever goes away in the middle leaves the order to its end, and its answer to the next who asks.
    let answers = Arc::clone(&admin);
    let kept_key = key.clone();
    let done = tokio::spawn(async move {
        let response = next.run(Request::from_parts(parts, Body::from(bytes))).await;
        let (parts, body) = response.into_parts();
        // Answers to orders are whole documents made here.
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        admin.answers.end(&key, parts.status, &parts.headers, &body);
        Response::from_parts(parts, Body::from(body))
    });
    match done.await {
        Ok(response) => response,
        Err(_) => {
            answers.answers.lock().remove(&kept_key);
            let detail = "the order ended by a panic, which is a fault of this program";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "panic", detail).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(text: &str) -> blake3::Hash {
        blake3::hash(text.as_bytes())
    }

    #[test]
    fn the_first_answer_is_given_again_and_another_body_is_refused() {
        let answers = Answers::default();
        let now = Instant::now();
        assert!(matches!(answers.begin("k", print("a"), now), Found::New));
        assert!(matches!(answers.begin("k", print("a"), now), Found::UnderWay));
        answers.end("k", StatusCode::CREATED, &HeaderMap::new(), &Bytes::from_static(b"x"));
        assert!(matches!(answers.begin("k", print("a"), now), Found::Same(_)));
        assert!(matches!(answers.begin("k", print("b"), now), Found::Other));
        assert!(matches!(answers.begin("k", print("b"), now + KEPT), Found::New));
    }

    #[test]
    fn a_refused_order_may_be_mended_under_its_key() {
        let answers = Answers::default();
        let now = Instant::now();
        for _ in 0..3 {
            assert!(matches!(answers.begin("k", print("a"), now), Found::New));
            answers.end("k", StatusCode::CONFLICT, &HeaderMap::new(), &Bytes::new());
        }
        assert!(matches!(answers.begin("k", print("b"), now), Found::New));
    }

    #[test]
    fn answers_are_bounded_in_number_and_bytes() {
        let answers = Answers::default();
        let now = Instant::now();
        answers.begin("under way", print("a"), now);
        for n in 0..ANSWERS_MAX + 100 {
            answers.begin(&n.to_string(), print("a"), now);
            answers.end(&n.to_string(), StatusCode::OK, &HeaderMap::new(), &Bytes::new());
        }
        assert!(answers.lock().by_key.len() <= ANSWERS_MAX);
        assert!(matches!(answers.begin("under way", print("a"), now), Found::UnderWay));
        // What is refused takes nobody's place.
        for n in 0..ANSWERS_MAX + 100 {
            let key = format!("refused {n}");
            answers.begin(&key, print("a"), now);
            answers.end(&key, StatusCode::METHOD_NOT_ALLOWED, &HeaderMap::new(), &Bytes::new());
        }
        assert!(matches!(answers.begin("4195", print("a"), now), Found::Same(_)));
        for n in 0..40 {
            let key = format!("big{n}");
            answers.begin(&key, print("a"), now);
            answers.end(&key, StatusCode::OK, &HeaderMap::new(), &Bytes::from(vec![0; 1 << 20]));
        }
        assert!(answers.lock().bytes <= BYTES_MAX);
        assert!(matches!(answers.begin("big39", print("a"), now), Found::Same(_)));
        assert!(matches!(answers.begin("big0", print("a"), now), Found::New));
    }
}
