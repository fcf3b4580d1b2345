//! E-mail through one SMTP server: TLS by STARTTLS or from the first byte, never without (R-USE-4).

use std::time::Duration;

use futures_util::future::join_all;
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    address::Envelope,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        Error,
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{NotSent, TIMEOUT};
use crate::{
    alerts::{EmailConfig, config::MailTls},
    store::{Alert, Delivery},
};

/// Each may need a connection of its own.
const MOST_RECIPIENTS: usize = 50;

/// One mail server and who is written to.
pub struct Email {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Email {
    /// Errors: a sentence that names the setting; never the password.
    pub fn new(config: &EmailConfig, patience: Duration) -> Result<Self, String> {
        let mailbox = |name: &str, address: &str| {
            let wrong = |_| format!("alerts.email.{name}: {address:?} is no address");
            address.parse::<Mailbox>().map_err(wrong)
        };
        let to = config.to.iter().map(|address| mailbox("to", address));
        let to: Vec<_> = to.collect::<Result<_, _>>()?;
        if to.is_empty() {
            return Err("alerts.email.to names nobody".into());
        }
        if to.len() > MOST_RECIPIENTS {
            return Err(format!(
                "alerts.email.to names more than {MOST_RECIPIENTS}; have the mail server keep a list"
            ));
        }
        let tls = tls(config)?;
        let tls = match config.tls {
            MailTls::Starttls => Tls::Required(tls),
            MailTls::Implicit => Tls::Wrapper(tls),
        };
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&config.host)
            .port(config.port)
            .tls(tls)
            .timeout(Some(patience));
        if let Some(username) = &config.username {
            let password = password(config)?;
            transport =
                transport.credentials(Credentials::new(username.clone(), password.to_string()));
        }
        Ok(Self {
            transport: transport.build(),
            from: mailbox("from", &config.from)?,
            to,
        })
    }

    /// Sends to everybody who has not `taken` it before. A server that refuses some of them has the others get it all the
    /// same.
    pub async fn send(
        &self,
        delivery: &Delivery,
        alert: &Alert,
        patience: Duration,
    ) -> Result<(), NotSent> {
        let not_sent = |why| NotSent::to_anybody(why, delivery);
        let message = self.message(alert).map_err(|_| not_sent("MESSAGE"))?;
        let message = message.formatted();
        let left = self.to.iter().map(|to| &to.email);
        let left: Vec<&Address> = left
            .filter(|to| !delivery.taken.iter().any(|taken| *taken == to.to_string()))
            .collect();
        match self.post(&left, &message, patience).await {
            Ok(()) => Ok(()),
            // It may be one of them alone that the server does not want.
            Err(SMTP_REFUSED | SMTP_LATER) if left.len() > 1 => {
                let each = left.iter().map(|to| async {
                    let posted = self.post(&[*to], &message, patience).await;
                    (to.to_string(), posted)
                });
                of_each(delivery, join_all(each).await)
            }
            Err(why) => Err(not_sent(why)),
        }
    }

    /// One envelope. Errors: why it did not get there.
    async fn post(
        &self,
        to: &[&Address],
        message: &[u8],
        patience: Duration,
    ) -> Result<(), &'static str> {
        let to: Vec<_> = to.iter().map(|to| (*to).clone()).collect();
        // Everybody who is still named has it.
        if to.is_empty() {
            return Ok(());
        }
        let envelope = Envelope::new(Some(self.from.email.clone()), to).map_err(|_| "MESSAGE")?;
        let posting = self.transport.send_raw(&envelope, message);
        match timeout(patience, posting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(code(&error)),
            Err(_) => Err(TIMEOUT),
        }
    }

    fn message(&self, alert: &Alert) -> Result<Message, lettre::error::Error> {
        let mut message = Message::builder()
            .from(self.from.clone())
            // The same for every attempt, so that a mailbox knows what it has.
            .message_id(Some(format!("<{}@claviger>", alert.id)))
            .subject(format!("[claviger] {} in {}", alert.kind, alert.tenant))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            message = message.to(to.clone());
        }
        message.body(format!(
            "{}\n\nKind: {}\nTenant: {}\nAbout: {} {}\nRaised: {}\nAlert: {}\n",
            alert.text,
            alert.kind,
            alert.tenant,
            alert.entity,
            alert.entity_id,
            alert.raised_at,
            alert.id,
        ))
    }
}

/// What came of it when each was written to alone.
fn of_each(
    delivery: &Delivery,
    posted: Vec<(String, Result<(), &'static str>)>,
) -> Result<(), NotSent> {
    let mut failed = None;
    let mut taken = delivery.taken.clone();
    for (to, posted) in posted {
        match posted {
            Ok(()) => taken.push(to),
            Err(why) => failed = Some(why),
        }
    }
    failed.map_or(Ok(()), |why| Err(NotSent { why, taken }))
}

fn tls(config: &EmailConfig) -> Result<TlsParameters, String> {
    let mut tls = TlsParameters::builder(config.host.clone());
    if let Some(path) = &config.ca_file {
        let wrong =
            |e: &dyn std::fmt::Display| format!("alerts.email.ca_file {}: {e}", path.display());
        let pem = std::fs::read(path).map_err(|e| wrong(&e))?;
        tls = tls.add_root_certificate(Certificate::from_pem(&pem).map_err(|e| wrong(&e))?);
    }
    tls.build().map_err(|e| format!("alerts.email: TLS: {e}"))
}

fn password(config: &EmailConfig) -> Result<Zeroizing<String>, String> {
    let path = config
        .password_file
        .as_ref()
        .ok_or("alerts.email.password_file is required with a username")?;
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("alerts.email.password_file {}: {e}", path.display()))?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.trim_end().to_owned()))
}

const SMTP_REFUSED: &str = "SMTP_REFUSED";
const SMTP_LATER: &str = "SMTP_LATER";

/// What went wrong, without the server's words: they may quote the message.
fn code(error: &Error) -> &'static str {
    if error.is_permanent() {
        SMTP_REFUSED
    } else if error.is_transient() {
        SMTP_LATER
    } else if error.is_timeout() {
        TIMEOUT
    } else if error.is_tls() {
        "TLS"
    } else {
        "SMTP_UNREACHABLE"
    }
}
