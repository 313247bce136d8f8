//! How a process's end is told: in the error stream, as Kubernetes' `v1.Status`, or to older clients as a sentence.
//!
//! Source: kubernetes apimachinery pkg/apis/meta/v1, `Status`; kubernetes/streaming pkg/cri remotecommand.

use serde_json::json;

use crate::error::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Text,
}

impl Form {
    /// What to write for an exit code.
    pub fn of_exit(self, code: i32) -> Vec<u8> {
        let message = format!("command terminated with non-zero exit code: exit status {code}");
        match (self, code) {
            (Form::Json, 0) => json!({ "metadata": {}, "status": "Success" }).to_string().into_bytes(),
            (Form::Text, 0) => Vec::new(),
            (Form::Text, _) => message.into_bytes(),
            (Form::Json, _) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            })
            .to_string()
            .into_bytes(),
        }
    }

    pub fn of_error(self, error: &Error) -> Vec<u8> {
        let message = error.to_string();
        match self {
            Form::Text => message.into_bytes(),
            Form::Json => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            })
            .to_string()
            .into_bytes(),
        }
    }
}
