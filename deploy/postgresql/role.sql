-- The role and the database of authsvc, made by psql as a superuser, as often as you like:
--
--   AUTHSVC_PASSWORD_FILE=secrets/database-password psql -d postgres -f role.sql
--   sudo -u postgres env AUTHSVC_PASSWORD_FILE=- psql -d postgres -f role.sql <secrets/database-password     # a file that is root's
--
-- The role owns its database and nothing else, and may look at the server's statistics; the server makes its tables itself. Nobody else
-- may connect to the database.
\set ON_ERROR_STOP on
\set password `cat "$AUTHSVC_PASSWORD_FILE"`
SELECT :'password' = '' AS lacking \gset
\if :lacking
DO $$ BEGIN RAISE EXCEPTION 'AUTHSVC_PASSWORD_FILE names no file that can be read and has a password in it; nothing was changed'; END $$;
\endif
SET password_encryption = 'scram-sha-256';
SELECT 'CREATE ROLE authsvc' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'authsvc') \gexec
ALTER ROLE authsvc LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'password';
SELECT 'CREATE DATABASE authsvc OWNER authsvc ENCODING ''UTF8'' TEMPLATE template0'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'authsvc') \gexec
REVOKE ALL ON DATABASE authsvc FROM PUBLIC;
-- What authsvc doctor looks at: whether standbys confirm commits.
GRANT pg_monitor TO authsvc;
