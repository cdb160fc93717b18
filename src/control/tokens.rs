//! API tokens: 256 random bits that are shown once, and of which only a hash is kept.
//!
//! A token reads `bst-ID-SECRET`. The id finds the record, the secret's BLAKE3 hash is compared in constant time. The
//! secret has 256 bits, so its hash needs no salt and no stretching.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::auth::{Caller, Role};
use crate::store::{Guard, Kind, Log, Record, Store, StoreError, Transition, Write};

/// Tokens at the same time.
pub(super) const TOKENS_MAX: usize = 1_000;
/// Longest name of a token, characters.
pub(super) const NAME_MAX: usize = 64;
/// How stale the stored time of last use may be.
const USE_STORED_EVERY: u64 = 60;

/// A token as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct TokenRecord {
    /// Eight hexadecimal digits.
    pub(super) id: String,
    /// What its owner calls it.
    pub(super) name: String,
    /// What it may do.
    pub(super) role: Role,
    /// BLAKE3 of the secret, in hexadecimal.
    hash: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// When it stops working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires: Option<u64>,
    /// When it was used last, to a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_used: Option<u64>,
}

impl TokenRecord {
    /// As lists show it: everything but the hash.
    pub(super) fn shown(&self, now: SystemTime) -> Value {
        json!({
            "id": self.id, "name": self.name, "role": self.role, "created": self.created,
            "expires": self.expires, "last_used": self.last_used, "expired": self.has_expired(unix(now)),
        })
    }

    fn has_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

/// Why a token is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadToken {
    /// Not one of ours, or revoked. Which of the two is not told.
    Unknown,
    /// It was one of ours.
    Expired,
}

impl BadToken {
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Unknown => "token-unknown",
            Self::Expired => "token-expired",
        }
    }
}

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "this token is not known here, or was revoked",
            Self::Expired => "this token has expired; `bootstorm token add` makes a new one",
        })
    }
}

pub(super) fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

pub(super) fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

/// Every token, in memory as it is stored.
#[derive(Clone, Default, Debug)]
pub(super) struct Tokens {
    by_id: Arc<Mutex<HashMap<String, TokenRecord>>>,
}

impl Tokens {
    /// All that are stored. A record that cannot be read is left out and said so: it opens nothing.
    pub(super) fn load(store: &mut dyn Store) -> Result<Self, StoreError> {
        let (_, records) = store.list(Kind::Token)?;
        let tokens = records.iter().filter_map(|record| match serde_json::from_str::<TokenRecord>(&record.body) {
            Ok(token) => Some((token.id.clone(), token)),
            Err(error) => {
                tracing::error!(key = record.key, %error, "a stored token cannot be read; it will not be taken");
                None
            }
        });
        Ok(Self { by_id: Arc::new(Mutex::new(tokens.collect())) })
    }

    /// Whose token this is.
    pub(super) fn check(&self, shown: &str, now: SystemTime) -> Result<Caller, BadToken> {
        let (id, secret) =
            shown.strip_prefix("bst-").and_then(|rest| rest.split_once('-')).ok_or(BadToken::Unknown)?;
        let hash = blake3::hash(secret.as_bytes());
        let tokens = self.lock();
        let token = tokens.get(id).ok_or(BadToken::Unknown)?;
        // blake3's comparison takes the same time for every hash.
        if blake3::Hash::from_hex(&token.hash).ok() != Some(hash) {
            return Err(BadToken::Unknown);
        }
        if token.has_expired(unix(now)) {
            return Err(BadToken::Expired);
        }
        Ok(Caller {
            name: format!("token {} ({})", token.name, token.id),
            role: token.role,
            token: Some(token.id.clone()),
        })
    }

    /// Whether the token of this id still works, for answers that go on for long.
    pub(super) fn still_works(&self, id: &str, now: SystemTime) -> bool {
        self.lock().get(id).is_some_and(|token| !token.has_expired(unix(now)))
    }

    /// Every token, oldest first.
    pub(super) fn list(&self) -> Vec<TokenRecord> {
        let mut list: Vec<TokenRecord> = self.lock().values().cloned().collect();
        list.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        list
    }

    /// Notes that a token was used; true when that is to be stored.
    pub(super) fn used(&self, id: &str, now: SystemTime) -> bool {
        let mut tokens = self.lock();
        let Some(token) = tokens.get_mut(id) else { return false };
        let now = unix(now);
        let stale = token.last_used.is_none_or(|last| now.saturating_sub(last) >= USE_STORED_EVERY);
        if stale {
            token.last_used = Some(now);
        }
        stale
    }

    /// Stores the time of last use. What was revoked meanwhile stays so: the record must be there.
    pub(super) fn store_use(&self, id: &str, store: &mut dyn Store) -> Result<(), StoreError> {
        let Some(stored) = store.get(Kind::Token, id)? else { return Ok(()) };
        let Some(token) = self.lock().get(id).cloned() else { return Ok(()) };
        let put = Write::Put {
            record: record(&token, stored.generation + 1),
            guard: Guard::Generation(stored.generation),
        };
        store.commit(&[Transition { writes: vec![put] }]).map(|_| ())
    }

    /// Stores a new token with its audit entry; the text to show once, and the record.
    pub(super) fn add(
        &self,
        wish: &Wish,
        random: [u8; 36],
        by: &str,
        store: &mut dyn Store,
        now: SystemTime,
    ) -> Result<(String, TokenRecord), AddError> {
        if self.lock().len() >= TOKENS_MAX {
            return Err(AddError::TooMany);
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (id, secret) = (hex(&random[..4]), hex(&random[4..]));
        let token = TokenRecord {
            id: id.clone(),
            name: wish.name.clone(),
            role: wish.role,
            hash: blake3::hash(secret.as_bytes()).to_hex().to_string(),
            created: unix(now),
            expires: wish.lasts.map(|lasts| unix(now).saturating_add(lasts.as_secs())),
            last_used: None,
        };
        let said = json!({
            "by": by, "what": "token-added",
            "token": { "id": id, "name": token.name, "role": token.role, "expires": token.expires },
        });
        let writes = vec![
            Write::Put { record: record(&token, 1), guard: Guard::Absent },
            Write::Append {
                log: Log::Audit,
                at_unix_ms: unix_ms(now),
                subject: format!("token {id}"),
                body: said.to_string(),
            },
        ];
        match store.commit(&[Transition { writes }])?.pop() {
            Some(Ok(_)) => {}
            // Four random bytes met twice.
            _ => return Err(AddError::Again),
        }
        self.lock().insert(id.clone(), token.clone());
        Ok((format!("bst-{id}-{secret}"), token))
    }

    /// Takes a token back with its audit entry; `None` when there is none of this id.
    pub(super) fn revoke(
        &self,
        id: &str,
        by: &str,
        store: &mut dyn Store,
        now: SystemTime,
    ) -> Result<Option<TokenRecord>, StoreError> {
        let Some(token) = self.lock().get(id).cloned() else { return Ok(None) };
        let said = json!({
            "by": by, "what": "token-revoked",
            "token": { "id": id, "name": token.name, "role": token.role },
        });
        let writes = vec![
            Write::Delete { kind: Kind::Token, key: id.to_owned(), guard: Guard::Any },
            Write::Append {
                log: Log::Audit,
                at_unix_ms: unix_ms(now),
                subject: format!("token {id}"),
                body: said.to_string(),
            },
        ];
        store.commit(&[Transition { writes }])?;
        self.lock().remove(id);
        Ok(Some(token))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, TokenRecord>> {
        // Whole records are put in and taken out.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn record(token: &TokenRecord, generation: u64) -> Record {
    let body = serde_json::to_string(token).expect("a token is plain data");
    Record { kind: Kind::Token, key: token.id.clone(), generation, body }
}

/// A token as someone asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wish {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) lasts: Option<Duration>,
}

/// Why there is no new token.
#[derive(Debug)]
pub(super) enum AddError {
    TooMany,
    Again,
    Store(StoreError),
}

impl From<StoreError> for AddError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn wish(role: Role, lasts: Option<u64>) -> Wish {
        Wish { name: "ci".into(), role, lasts: lasts.map(Duration::from_secs) }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + NOW
    }

    #[test]
    fn a_token_is_taken_until_it_is_revoked_and_survives_a_restart() {
        let mut store = MemoryStore::new();
        let tokens = Tokens::default();
        let (text, token) =
            tokens.add(&wish(Role::Operate, None), [7; 36], "uid 0", &mut store, now()).expect("stored");
        let caller = tokens.check(&text, now()).expect("taken");
        assert_eq!((caller.role, caller.name.as_str()), (Role::Operate, "token ci (07070707)"));
        let again = Tokens::load(&mut store).expect("loaded");
        assert!(again.check(&text, now()).is_ok());
        let stored = store.get(Kind::Token, &token.id).unwrap().unwrap().body;
        let secret = text.rsplit('-').next().unwrap();
        assert!(!stored.contains(secret), "the secret itself is never stored");
        again.revoke(&token.id, "uid 0", &mut store, now()).unwrap().expect("was there");
        assert_eq!(again.check(&text, now()).unwrap_err(), BadToken::Unknown);
        assert!(Tokens::load(&mut store).unwrap().check(&text, now()).is_err());
        let audit = store.read_log(Log::Audit, None, None, 9).unwrap();
        assert_eq!(audit.len(), 2);
        assert!(audit.iter().all(|entry| !entry.body.contains(secret)), "nor is it told to the audit log");
    }

    #[test]
    fn a_token_expires() {
        let mut store = MemoryStore::new();
        let tokens = Tokens::default();
        let (text, token) = tokens.add(&wish(Role::Read, Some(60)), [1; 36], "x", &mut store, now()).unwrap();
        assert!(tokens.check(&text, now() + Duration::from_secs(59)).is_ok());
        assert_eq!(tokens.check(&text, now() + Duration::from_secs(60)).unwrap_err(), BadToken::Expired);
        assert!(!tokens.still_works(&token.id, now() + Duration::from_secs(60)));
    }

    #[test]
    fn what_is_nearly_a_token_is_not_taken() {
        let mut store = MemoryStore::new();
        let tokens = Tokens::default();
        let (text, _) = tokens.add(&wish(Role::Admin, None), [9; 36], "x", &mut store, now()).unwrap();
        for bad in ["", "bst-", "bst-09090909-", &text[1..], &text[..text.len() - 1], &format!("{text}0")] {
            assert_eq!(tokens.check(bad, now()).unwrap_err(), BadToken::Unknown, "{bad}");
        }
    }

    #[test]
    fn a_use_stored_late_does_not_bring_a_revoked_token_back() {
        let mut store = MemoryStore::new();
        let tokens = Tokens::default();
        let (_, token) = tokens.add(&wish(Role::Read, None), [3; 36], "x", &mut store, now()).unwrap();
        assert!(tokens.used(&token.id, now()) && !tokens.used(&token.id, now()));
        tokens.store_use(&token.id, &mut store).unwrap();
        let stored = Tokens::load(&mut store).unwrap();
        assert_eq!(stored.list()[0].last_used, Some(NOW.as_secs()));
        tokens.revoke(&token.id, "x", &mut store, now()).unwrap();
        stored.store_use(&token.id, &mut store).unwrap();
        assert_eq!(store.get(Kind::Token, &token.id).unwrap(), None);
    }

    #[test]
    fn there_are_only_so_many_tokens() {
        let mut store = MemoryStore::new();
        let tokens = Tokens::default();
        for n in 0..=TOKENS_MAX {
            let mut random = [0; 36];
            random[..4].copy_from_slice(&(n as u32).to_be_bytes());
            let added = tokens.add(&wish(Role::Read, None), random, "x", &mut store, now());
            assert_eq!(added.is_ok(), n < TOKENS_MAX, "{n}");
        }
    }
}
