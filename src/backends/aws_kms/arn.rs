//! What names a key: its ARN, for ever; or an alias, once, when a key is adopted.
//!
//! References are key ARNs and nothing else: an alias can be moved to another key by whoever may call
//! `UpdateAlias`, and a bare key id says neither account nor region.

/// How an operator names a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// `arn:aws:kms:REGION:ACCOUNT:key/ID`.
    Key(Arn),
    /// `arn:aws:kms:REGION:ACCOUNT:alias/NAME`.
    AliasArn(Arn),
    /// `alias/NAME`, in our own account and region.
    Alias(String),
}

/// Where a key or an alias is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arn {
    pub(super) region: String,
    pub(super) account: String,
}

impl Named {
    /// Errors: what is wrong with `text`, for people.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const WANTED: &str =
            "it is named by a key ARN (arn:aws:kms:REGION:ACCOUNT:key/ID) or by an alias";
        if text.len() > 2048 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(WANTED);
        }
        if let Some(name) = text.strip_prefix("alias/") {
            return match name {
                "" => Err(WANTED),
                _named => Ok(Self::Alias(text.to_owned())),
            };
        }
        let parts: Vec<_> = text.splitn(6, ':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts[..] else {
            return Err(WANTED);
        };
        if !partition.starts_with("aws") || region.is_empty() || !is_account(account) {
            return Err(WANTED);
        }
        let arn = Arn {
            region: region.to_owned(),
            account: account.to_owned(),
        };
        match resource.split_once('/') {
            Some(("key", id)) if is_key_id(id) => Ok(Self::Key(arn)),
            Some(("alias", name)) if !name.is_empty() => Ok(Self::AliasArn(arn)),
            _ => Err(WANTED),
        }
    }

    /// Where it says that it is; None for an alias without account and region.
    pub(super) const fn arn(&self) -> Option<&Arn> {
        match self {
            Self::Key(arn) | Self::AliasArn(arn) => Some(arn),
            Self::Alias(_) => None,
        }
    }
}

/// Twelve digits.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_key_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_key_arns_and_aliases() {
        let key = "arn:aws:kms:eu-west-1:123456789012:key/mrk-0a1b";
        assert!(matches!(Named::parse(key), Ok(Named::Key(arn)) if arn.region == "eu-west-1"));
        let alias = "arn:aws-cn:kms:cn-north-1:123456789012:alias/kek";
        assert!(matches!(Named::parse(alias), Ok(Named::AliasArn(_))));
        assert!(matches!(Named::parse("alias/a/b"), Ok(Named::Alias(_))));
        for wrong in [
            "",
            "alias/",
            "not a reference",
            "0a1b2c3d-0000-0000-0000-000000000000",
            "arn:aws:s3:eu-west-1:123456789012:key/0a1b",
            "arn:aws:kms:eu-west-1:12345:key/0a1b",
            "arn:aws:kms:eu-west-1:123456789012:key/",
            "arn:aws:kms:eu-west-1:123456789012:key/a/b",
            "arn:aws:kms::123456789012:key/a",
        ] {
            assert!(Named::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
