"""A few entries of each feed, made up in the shapes that are documented, and in those that radosgw 16.2.15 writes."""

import json
from typing import Any

SECRETS = (
    "X-Amz-Signature=5f0c7a1e55ec2e7",
    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/s3/aws4_request, Signature=5f0c7a1e55ec2e7",
    "Authorization: Bearer 5f0c7a1e55ec2e7",
    "https://h/b/k?X-Amz-Security-Token=5f0c7a1e55ec2e7&x=1",
    "k%3FX-Amz-Signature%3D5f0c7a1e55ec2e7",
    "k%253FX%252DAmz%252DSignature%253D5f0c7a1e55ec2e7",
    "AWS AKIDEXAMPLE:5f0c7a1e55ec2e7",
    '{"sessionToken":"5f0c7a1e55ec2e7"}',
    "x-amz-server-side-encryption-customer-key: 5f0c7a1e55ec2e7",
)
"""Ways to write the secret; none may reach a record."""
SECRET = "5f0c7a1e55ec2e7"


def aws(event: str = "ObjectCreated:Put", key: str = "photos/a+b%2Bc.jpg", **thing: Any) -> dict[str, Any]:
    return {
        "eventVersion": "2.5",
        "eventSource": "aws:s3",
        "awsRegion": "eu-central-1",
        "eventTime": "2026-03-01T10:20:30.123Z",
        "eventName": event,
        "userIdentity": {"principalId": "AWS:AIDAMADEUP"},
        "requestParameters": {"sourceIPAddress": "192.0.2.7"},
        "responseElements": {"x-amz-request-id": "REQ0001", "x-amz-id-2": "host"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "all",
            "bucket": {"name": "photos", "ownerIdentity": {"principalId": "A1"}, "arn": "arn:aws:s3:::photos"},
            "object": {"key": key, "size": 5, "eTag": "aa", "versionId": "v1", "sequencer": "0055AED6DCD90281E5"}
            | thing,
        },
    }


def ceph(event: str = "ObjectCreated:Put", key: str = "per%41cent", **thing: Any) -> dict[str, Any]:
    record = aws(event, key, **({"versionId": "", "metadata": [], "tags": []} | thing))
    return record | {
        "eventVersion": "2.2",
        "eventSource": "ceph:s3",
        "eventTime": "2026-11-22T06:26:12.881519Z",
        "userIdentity": {"principalId": "backup"},
        "requestParameters": {"sourceIPAddress": ""},
        "responseElements": {
            "x-amz-request-id": "2daad2b2-fbe4-4413-9e42-1d6dd9ff8731.4105.10653447893174369237",
            "x-amz-id-2": "1009-default-default",
        },
        "eventId": "1795328772.883537.aa",
        "opaqueData": "",
    }


def minio(event: str = "s3:ObjectCreated:Put", key: str = "a%2Fb+c") -> dict[str, Any]:
    record = aws(event, key) | {
        "eventSource": "minio:s3",
        "userIdentity": {"principalId": "AKIDMINIO"},
        "source": {"host": "192.0.2.8", "port": "", "userAgent": "MinIO (linux; amd64) mc/1"},
    }
    return {"EventName": event, "Key": f"photos/{key}", "Records": [record]}


def bridge(kind: str = "Object Created", reason: str = "PutObject", **detail: Any) -> dict[str, Any]:
    return {
        "version": "0",
        "id": "0b6e",
        "detail-type": kind,
        "source": "aws.s3",
        "time": "2026-03-01T10:20:30Z",
        "detail": {
            "version": "0",
            "bucket": {"name": "photos"},
            "object": {"key": "a b+c", "size": 5, "etag": "aa", "version-id": "v1", "sequencer": "00617F"},
            "request-id": "REQ0002",
            "requester": "123456789012",
            "source-ip-address": "192.0.2.9",
            "reason": reason,
        }
        | detail,
    }


def ops(operation: str = "put_obj", uri: str = "PUT /photos/with%20blank HTTP/1.1", **more: Any) -> dict[str, Any]:
    return {
        "bucket": "photos",
        "time": "2026-11-22T06:25:14.188877Z",
        "time_local": "2026-11-22T06:25:14.188877+0000",
        "remote_addr": "192.0.2.10",
        "user": "backup",
        "operation": operation,
        "uri": uri,
        "http_status": "200",
        "error_code": "",
        "bytes_sent": 0,
        "bytes_received": 1,
        "object_size": 1,
        "total_time": 92,
        "user_agent": "rclone/v1",
        "referrer": "",
        "trans_id": "tx0000093d8a66a19cabbd5-006b028b04-1009-default",
        "authentication_type": "Local",
        "access_key_id": "AKIDCEPH",
        "temp_url": False,
    } | more


def audit(called: str = "PutObject", status: int = 200, **api: Any) -> dict[str, Any]:
    return {
        "version": "1",
        "deploymentid": "8ca2",
        "time": "2026-02-28T19:39:25.744431903Z",
        "event": "",
        "trigger": "incoming",
        "api": {
            "name": called,
            "bucket": "photos",
            "object": "a b",
            "status": "OK" if status < 400 else "AccessDenied",
            "statusCode": status,
            "rx": 267,
            "tx": 358,
        }
        | api,
        "remotehost": "192.0.2.11",
        "requestID": "17B86CB0ED88EBE9",
        "userAgent": "MinIO (linux; amd64) minio-go/v7",
        "requestPath": "/photos/a b",
        "requestClaims": {"accessKey": "AKIDMINIO", "sub": "AKIDMINIO"},
        "requestHeader": {
            "Authorization": SECRETS[1],
            "X-Amz-Decoded-Content-Length": "5",
            "Content-Length": "300",
        },
        "responseHeader": {"ETag": '"aa"', "x-amz-version-id": "v1"},
        "accessKey": "AKIDMINIO",
    }


def trail(called: str = "PutObject", **more: Any) -> dict[str, Any]:
    return {
        "eventVersion": "1.09",
        "userIdentity": {
            "type": "IAMUser",
            "principalId": "AIDAMADEUP",
            "arn": "arn:aws:iam::123456789012:user/backup",
            "accountId": "123456789012",
            "accessKeyId": "AKIDTRAIL",
            "userName": "backup",
        },
        "eventTime": "2026-03-01T10:20:30Z",
        "eventSource": "s3.amazonaws.com",
        "eventName": called,
        "awsRegion": "eu-central-1",
        "sourceIPAddress": "192.0.2.12",
        "userAgent": "[aws-cli/2]",
        "requestParameters": {"bucketName": "photos", "key": "a b", "Host": "photos.s3.amazonaws.com"},
        "responseElements": {"x-amz-version-id": "v1"},
        "additionalEventData": {"bytesTransferredIn": 5.0},
        "requestID": "REQ0003",
        "eventID": "6f0e",
        "readOnly": False,
        "recipientAccountId": "123456789012",
    } | more


def access(
    operation: str = "REST.PUT.OBJECT",
    key: str = "a%2520b",
    line: str = '"PUT /photos/a%20b HTTP/1.1"',
    status: str = "200 -",
    agent: str = "rclone/v1",
    version: str = "v1",
) -> bytes:
    return (
        f"0wner photos [01/Mar/2026:10:20:30 +0000] 192.0.2.13 arn:aws:iam::123456789012:user/backup REQ0004 {operation} {key}"
        f' {line} {status} - 5 12 9 "-" "{agent}" {version} hostid= SigV4 AES AuthHeader photos.s3.amazonaws.com TLSv1.3 - -'
    ).encode()


def report(key: str = "a+b", outcome: str = "succeeded", codes: str = ",200", message: str = "Successful") -> bytes:
    return f'"photos","{key}","v1",{outcome},{codes},"{message}"'.encode()


def lines() -> dict[str, list[bytes]]:
    """Per feed."""

    def told(*documents: object) -> list[bytes]:
        return [json.dumps(document, ensure_ascii=False).encode() for document in documents]

    notice = json.dumps({"Records": [aws()]})
    return {
        "notifications": told(
            {"Records": [aws(), aws("ObjectRemoved:Delete"), aws("ObjectRemoved:DeleteMarkerCreated")]},
            {"Records": [ceph(), ceph("ObjectRemoved:Delete", "ünï/é")]},
            minio(),
            minio("s3:ObjectCreated:PutRetention"),
            bridge(),
            bridge("Object Deleted", "DeleteObject", **{"deletion-type": "Delete Marker Created"}),
            {"detail-type": "AWS API Call via CloudTrail", "detail": trail()},
            {"Type": "Notification", "Message": notice, "MessageId": "1", "TopicArn": "arn:x"},
            {"Messages": [{"Body": json.dumps({"Message": notice})}]},
            {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "photos"},
        ),
        "minio-audit": told(
            audit(),
            [audit("DeleteObject"), audit("GetObject")],
            audit(
                "DeleteMultipleObjects",
                objects=[{"objectName": "x"}, {"objectName": "y", "versionId": "v9"}],
                object="",
            ),
            audit("PutObjectPart"),
            audit("ServerInfo", bucket=""),
        ),
        "rgw-ops-log": [
            *told(
                ops(),
                ops(
                    "delete_obj",
                    "DELETE /photos/x?versionId=v7?versionId=v7 HTTP/1.1",
                    http_status="204",
                    error_code="NoContent",
                ),
                ops("put_obj", "PUT /photos/x?uploadId=2~u&partNumber=1?uploadId=2~u&partNumber=1 HTTP/1.1"),
                ops(
                    "multi_object_delete",
                    "POST /photos?delete?delete HTTP/1.1",
                    delete_multi_obj_data={"objects": [{"key": "x", "http_status": 204, "error": False}, {"key": "y"}]},
                ),
                ops("list_buckets", "GET / HTTP/1.1", bucket="-"),
            ),
            b"\0" + told(ops())[0] + b",\n",
        ],
        "access-logs": [
            access(),
            access("REST.DELETE.OBJECT", "x", '"DELETE /photos/x?versionId=v7 HTTP/1.1"', "204 -"),
            access("S3.EXPIRE.OBJECT", "x", '"-"', "- -"),
            access("REST.PUT.PART"),
            b'0 b [06/Feb/2019:00:00:38 +0000] ::1 - REQ REST.GET.ACL - "GET /b?acl HTTP/1.1" 200 - 1 - 7 - "-" "S3" -',
        ],
        "cloudtrail": told(
            {"Records": [trail(), trail("PutBucketPolicy"), trail("DeleteBucketLifecycle"), trail("GetObject")]},
            trail("DeleteObject", errorCode="AccessDenied", errorMessage="Access Denied"),
            {"Records": [trail(eventSource="ec2.amazonaws.com")]},
            {"digestStartTime": "2026-01-01T00:00:00Z"},
        ),
        "batch-report": [
            report(),
            report(outcome="failed", codes="AccessDenied,403", message="Access denied"),
            report(outcome="failed", codes="403,AccessDenied"),
            b'{"Format":"Report_CSV_20180820"}',
        ],
    }
