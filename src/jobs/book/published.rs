//! A book with its table, for tests: what the keeper does, without a store.

use crate::jobs::evidence::Seen;
use crate::jobs::lifecycle::Passage;
use std::cell::{Ref, RefCell, RefMut};
use std::sync::Arc;

use super::*;
use crate::jobs::table::{self, Table, View};

/// A book whose every change is published at once. Last files pass as the engine has them pass.
pub(in crate::jobs) struct Published {
    inner: RefCell<(Book, Writer)>,
    table: Arc<Table>,
}

impl Published {
    pub(in crate::jobs) fn new() -> Self {
        let (table, writer) = table::table(64);
        Self { inner: RefCell::new((Book::new(), writer)), table }
    }

    pub(in crate::jobs) fn load(&self) -> View<'_> {
        self.table.view()
    }

    pub(in crate::jobs) fn add(
        &self,
        spec: JobSpec,
        images: &dyn Images,
        now: SystemTime,
    ) -> Result<Job, Refusal> {
        self.change(|book| book.add(spec, images, "test", at(now)).map(|job| Job::clone(&job)))
    }

    pub(in crate::jobs) fn cancel(&self, id: JobId, now: SystemTime) -> Result<Job, Refusal> {
        self.change(|book| book.cancel(id, None, "an operator", at(now)).map(|job| Job::clone(&job)))
    }

    pub(in crate::jobs) fn rearm(
        &self,
        id: JobId,
        images: &dyn Images,
        now: SystemTime,
        next_boot: u64,
    ) -> Result<Job, Refusal> {
        let at = Moment { now, next_boot: BootId(next_boot) };
        self.change(|book| book.rearm(id, None, true, images, "test", at).map(|job| Job::clone(&job)))
    }

    pub(in crate::jobs) fn note(&self, evidence: &Evidence, now: SystemTime) -> Option<Job> {
        if let Seen::FileDone { job: Some(job), image, file, last: true, .. } = &evidence.seen
            && let Some(boot) = evidence.boot
        {
            let what = format!("the last of {file}");
            let line = AtTheLine {
                boot,
                job: *job,
                image: image.clone(),
                what,
                idents: Vec::new(),
                once: None,
                changed: false,
            };
            if self.pass(&line, now) == Passage::Now {
                self.change(|book| book.note(evidence, at(now)));
                return self.job(*job);
            }
        }
        self.change(|book| book.note(evidence, at(now)).map(|job| Job::clone(&job)))
    }

    pub(in crate::jobs) fn pass(&self, line: &AtTheLine, now: SystemTime) -> Passage {
        self.change(|book| book.pass(line, at(now)))
    }

    pub(in crate::jobs) fn expire(&self, now: SystemTime) -> Vec<Job> {
        self.change(|book| book.expire(at(now)).iter().map(|job| Job::clone(job)).collect())
    }

    pub(in crate::jobs) fn list(&self) -> Vec<Job> {
        self.book().jobs().map(|job| Job::clone(job)).collect()
    }

    pub(in crate::jobs) fn job(&self, id: JobId) -> Option<Job> {
        self.book().job(id).map(|job| Job::clone(job))
    }

    pub(in crate::jobs) fn book(&self) -> Ref<'_, Book> {
        Ref::map(self.inner.borrow(), |inner| &inner.0)
    }

    pub(in crate::jobs) fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let (mut book, mut writer) =
            RefMut::map_split(self.inner.borrow_mut(), |(book, writer)| (book, writer));
        let result = change(&mut book);
        book.publish(&mut writer);
        result
    }
}

/// Boots of tests are numbered low, but for those that come after a re-arming.
fn at(now: SystemTime) -> Moment {
    Moment { now, next_boot: BootId(1000) }
}
