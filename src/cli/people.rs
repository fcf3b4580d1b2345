//! How principals are shown. No RPC that everybody may call knows their names, so there are three ways: the daemon's own
//! jobs by name, who calls as `you` as far as an answer tells, and everybody else by id.

use crate::model::Job;

/// How much of an id a table shows: the end of it, which is random.
const SHOWN: usize = 8;

/// Who is who in one answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct People<'a> {
    you: Option<&'a str>,
}

impl<'a> People<'a> {
    /// Nobody is known.
    pub const fn strangers() -> Self {
        Self { you: None }
    }

    /// `id` is who calls: they have just done what the answer names them for.
    pub const fn you(id: &'a str) -> Self {
        Self { you: Some(id) }
    }

    /// For a line of its own: the whole id, as `audit list --actor` takes it. Empty for nobody.
    pub fn long(self, id: &str) -> String {
        match (job(id), self.is_you(id)) {
            (Some(name), _) => format!("{name} (the daemon itself)"),
            (None, true) => format!("{id} (you)"),
            (None, false) => id.to_owned(),
        }
    }

    /// For a table: `…e600636b`. Empty for nobody.
    pub fn short(self, id: &str) -> String {
        match (job(id), self.is_you(id)) {
            (Some(name), _) => name,
            (None, true) => "you".to_owned(),
            (None, false) => tail(id),
        }
    }

    fn is_you(self, id: &str) -> bool {
        !id.is_empty() && self.you == Some(id)
    }
}

fn job(id: &str) -> Option<String> {
    let mut jobs = Job::ALL.into_iter().map(Job::principal);
    let job = jobs.find(|job| job.id.to_string() == id)?;
    Some(job.name.to_string())
}

fn tail(id: &str) -> String {
    match id.len().checked_sub(SHOWN).and_then(|from| id.get(from..)) {
        Some(tail) if tail != id => format!("…{tail}"),
        Some(_) | None => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01a1fbfa-24c4-768b-9e3e-dbbce600636b";

    #[test]
    fn ids_are_short_in_tables_and_whole_elsewhere() {
        let people = People::strangers();
        assert_eq!(people.short(ID), "…e600636b");
        assert_eq!(people.long(ID), ID);
        assert_eq!((people.short(""), people.long("")), Default::default());
        assert_eq!(people.short("12345678"), "12345678");
        assert_eq!(people.short("€€€€"), "€€€€");
    }

    #[test]
    fn the_caller_and_the_jobs_are_named() {
        assert_eq!(People::you(ID).long(ID), format!("{ID} (you)"));
        assert_eq!(People::you("").long(""), "");
        assert_eq!(People::you(ID).short(ID), "you");
        let job = Job::Scheduler.principal().id.to_string();
        assert_eq!(People::strangers().short(&job), "job.scheduler");
    }
}
